"""Processes, collectives, signals and locks of a run."""
