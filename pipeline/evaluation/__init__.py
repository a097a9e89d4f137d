"""Scores of the ONNX files, comparison of each variant with its parent, and the gate."""
