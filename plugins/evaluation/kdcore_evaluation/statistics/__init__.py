"""Intervals, tests and power of comparisons, on NumPy arrays."""
