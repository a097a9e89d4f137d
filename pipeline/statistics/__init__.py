"""Confidence intervals, significance tests, and average precision."""
