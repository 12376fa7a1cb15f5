"""Let a person at a terminal have a conversation with a model."""
