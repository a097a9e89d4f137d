"""Which channels a student can do without, and the smaller network that is left."""
