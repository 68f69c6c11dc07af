"""Create sentence-transformers folders from existing ones."""
