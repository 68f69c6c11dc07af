"""One run: from a recipe to live objects, its folder, its exports."""
