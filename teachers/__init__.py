"""Teachers: a classifier and the contract of its input.

Nothing is imported here: the contract alone, which shipped files go by, needs no PyTorch.
"""
