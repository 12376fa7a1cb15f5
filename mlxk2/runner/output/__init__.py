"""From token ids to text: characters, reasoning, stop strings."""
