"""Corpora: readers of raw text and of sequences tokenised by another program."""
