"""Manage the processes of a run, with collectives, signals and locks."""
