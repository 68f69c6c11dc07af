"""The training loop and the actions between its steps."""
