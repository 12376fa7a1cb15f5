"""Run a model in memory; only this package imports mlx_lm, and only its folder `mlx/` imports mlx."""
