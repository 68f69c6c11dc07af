"""Make folders of sentence-transformers from others."""
