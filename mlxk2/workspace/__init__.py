"""A folder of the user's that becomes a model on the hub: what is in it, whether it is sound, what would change."""
