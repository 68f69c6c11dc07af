"""The objective `minilm_v2` for kdcore."""
