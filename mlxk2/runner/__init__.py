"""A model in memory: the only room that imports mlx and mlx_lm, and `mlx/` the only folder that imports mlx itself."""
