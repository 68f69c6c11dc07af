"""`kdcore prepare`, `kdcore data`, `kdcore tokenizer`."""
