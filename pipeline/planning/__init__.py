"""A plan for a folder of images: what it holds, how fast this machine is, and what fits into the time."""
