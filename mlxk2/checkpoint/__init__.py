"""What the files of a model say, in any folder: no network and no MLX."""
