"""The command line: parse, run a command, show its data."""
