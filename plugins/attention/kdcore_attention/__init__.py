"""The losses `attention_kl`, `attention_mse` and `value_relation_kl` for kdcore."""
