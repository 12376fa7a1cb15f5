"""A person at a terminal, in conversation with a model."""
