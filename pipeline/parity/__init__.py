"""Agreement of the shipped file with the network that it was made from, step by step."""
