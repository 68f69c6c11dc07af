"""Models: the interface and the adapter for Hugging Face encoders."""
