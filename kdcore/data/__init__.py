"""Prepared data and tokenizers, and the interfaces of corpora and of packages that prepare data."""
