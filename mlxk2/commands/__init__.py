"""The commands: one module per verb, with its `Options` and a `run(options, context)` that returns data or raises."""
