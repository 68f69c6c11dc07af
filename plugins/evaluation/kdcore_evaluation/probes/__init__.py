"""What is measured of an encoder without training it."""
