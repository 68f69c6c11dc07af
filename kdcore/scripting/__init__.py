"""Distil a teacher from Python with one call, and read the results of runs."""
