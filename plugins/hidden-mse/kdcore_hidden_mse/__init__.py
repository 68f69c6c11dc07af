"""Losses on hidden states for kdcore."""
