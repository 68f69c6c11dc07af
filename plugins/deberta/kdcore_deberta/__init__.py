"""The model `deberta` for kdcore: DeBERTa-v2 and DeBERTa-v3."""
