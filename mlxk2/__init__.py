"""mlxk2: manage, run and serve language models on Apple's MLX."""

__version__ = "2.0.0b5"
VERSION_LINE = f"mlxk2 {__version__}"
