"""Weights & Biases for kdcore."""
