"""Optimizers: the interface and the built-in optimizers."""
