"""The commands: one module per verb, each with `run(args)`, which returns data or raises."""
