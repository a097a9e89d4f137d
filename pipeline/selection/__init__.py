"""Which variant fits a budget, in one run or among experiments."""
