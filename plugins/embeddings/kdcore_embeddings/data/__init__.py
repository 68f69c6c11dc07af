"""Read texts, and groups of related texts."""
