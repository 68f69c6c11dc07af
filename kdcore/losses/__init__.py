"""Objectives: the interface and the ones that are built in."""
