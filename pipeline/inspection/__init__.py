"""How variants behave on unusual images, where they look, and what each layer tolerates."""
