"""From a suite and models to result rows."""
