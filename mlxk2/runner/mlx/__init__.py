"""A model on MLX: loading, reading prompts, decoding, sampling."""
