"""What runs on MLX: loading, batches, sampling."""
