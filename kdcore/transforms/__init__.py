"""Transforms of students between the stages of a run: the interface."""
