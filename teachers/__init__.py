"""Teachers: a classifier and the contract of its input.

Nothing is imported here, because the contract is used with shipped files, too, and needs no PyTorch.
"""
