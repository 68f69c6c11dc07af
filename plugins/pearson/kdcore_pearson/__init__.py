"""The loss `attention_pearson` for kdcore."""
