"""A stand-in for mlx, for tests that must run where there is none."""
