"""Variants as LiteRT (TensorFlow Lite) files: written, described, run and verified."""
