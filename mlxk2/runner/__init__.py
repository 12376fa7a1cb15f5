"""The model in memory: the only rooms that import mlx and mlx_lm."""
