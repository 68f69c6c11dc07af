"""Measurements of an encoder without training it."""
