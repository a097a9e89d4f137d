"""Channel pruning: the choice of the channels that a student can do without, and their removal."""
