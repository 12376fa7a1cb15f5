"""The architectures that the stand-in knows."""
