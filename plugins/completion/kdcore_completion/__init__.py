"""Shell completion for kdcore."""
