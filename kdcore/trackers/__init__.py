"""Interface of trackers, which record metrics, and the built-in trackers."""
