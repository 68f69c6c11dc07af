"""The loss `minilm_v2` for kdcore."""
