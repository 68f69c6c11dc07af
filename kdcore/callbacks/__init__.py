"""Interface of callbacks, which react to the events of a run."""
