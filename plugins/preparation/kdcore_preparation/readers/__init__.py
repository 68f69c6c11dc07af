"""Corpora: readers of raw text and of sequences that another program tokenised."""
