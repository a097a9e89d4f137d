"""Eight-bit arithmetic: where rounding is decided, after training or during training, and its simulator."""
