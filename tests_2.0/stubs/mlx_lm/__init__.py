"""A stand-in for mlx-lm: an echo, which completes every prompt with the prompt."""
