"""The objective `hidden_mse` for kdcore."""
