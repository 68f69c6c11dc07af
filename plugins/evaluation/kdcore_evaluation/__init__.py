"""Measure, compare and sweep distilled encoders."""
