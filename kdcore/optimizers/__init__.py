"""Interface of optimizers, and the built-in optimizers."""
