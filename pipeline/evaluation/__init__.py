"""Accuracy of the shipped files, overall and per image group, and the gate that accepts a variant."""
