"""The loss `contrastive` for kdcore."""
