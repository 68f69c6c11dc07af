"""Distil sentence encoders: teachers and exports of sentence-transformers, and losses on embeddings."""
