"""Students: on disk, what they start from, and what they cost on paper."""
