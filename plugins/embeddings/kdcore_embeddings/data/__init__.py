"""Read texts, and groups of texts that belong together."""
