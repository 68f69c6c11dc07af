"""Models: the interface and the adapter of Hugging Face encoders."""
