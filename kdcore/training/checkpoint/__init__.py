"""Checkpoints: their files, how they are written and restored."""
