"""What the pipeline leaves on the disk beside its results: DVC's cache, and remains of what was killed."""
