"""What training reads: prepared folders and tokenizers; the interfaces of corpora and of packages that prepare data."""
