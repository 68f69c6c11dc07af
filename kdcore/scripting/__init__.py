"""Distil from Python: one call from teacher and text to a student, opened runs, and losses as functions."""
