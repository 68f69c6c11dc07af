"""Learning-rate schedules: the interface and the built-in schedules."""
