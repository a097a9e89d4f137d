"""One script per DVC stage: load, call, save."""
