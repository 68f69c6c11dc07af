"""Weights & Biases tracker for kdcore."""
