"""Interface of models, and the adapter for Hugging Face encoders."""
