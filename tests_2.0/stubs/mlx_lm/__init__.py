"""A stand-in for mlx-lm: an echo, which answers every prompt with the prompt."""
