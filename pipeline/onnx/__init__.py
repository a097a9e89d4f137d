"""The shipped file: how the graph is written, and how ONNX Runtime runs it."""
