"""Trackers, where metrics go: the interface and the ones that are built in."""
