"""Submit kdcore recipes to SLURM."""
