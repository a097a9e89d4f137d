"""The bodies of the commands, one module per command.

Each has a function ``run``, which imports what it needs, so that commands that need no PyTorch start at once.
"""
