"""The process that a stage or a command runs in: its beginning, what may change meanwhile, and its end."""
