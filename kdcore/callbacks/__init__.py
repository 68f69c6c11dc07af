"""Callbacks, which react to the events of a run: the interface."""
