"""Losses: the interface and the built-in losses."""
