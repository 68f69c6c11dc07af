"""Interface of learning-rate schedules, and the built-in schedules."""
