"""A user's folder: the files that a push uploads from it, and the clone of a model into it."""
