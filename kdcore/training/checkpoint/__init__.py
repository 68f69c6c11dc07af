"""Write, select and restore checkpoints."""
