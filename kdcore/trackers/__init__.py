"""Trackers, which record metrics: the interface and the built-in trackers."""
