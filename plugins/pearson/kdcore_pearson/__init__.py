"""The objective `attention_pearson` for kdcore."""
