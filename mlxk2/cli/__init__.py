"""Parse the command line, run a command, and show its data."""
