"""Sends kdcore recipes to SLURM."""
