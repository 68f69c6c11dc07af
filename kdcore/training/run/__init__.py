"""Execute one run: build its plan, manage its folder, and export its student."""
