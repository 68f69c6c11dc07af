"""Processes, collectives, signals and locks that a run needs."""
