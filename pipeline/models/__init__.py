"""Students: their folders on disk, their initial weights, and their costs on paper."""
