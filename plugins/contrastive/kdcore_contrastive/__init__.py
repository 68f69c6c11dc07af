"""The objective `contrastive` for kdcore."""
