"""Evaluate models with a suite and produce result rows."""
