"""Interface of losses, and the built-in losses."""
