"""Read texts, and what belongs together among them."""
