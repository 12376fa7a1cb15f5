"""A folder of the user's: what a push uploads of it and changes on the hub, and how a clone fills it."""
