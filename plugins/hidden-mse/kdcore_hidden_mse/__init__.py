"""Objectives on hidden states for kdcore."""
