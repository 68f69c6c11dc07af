"""Learning-rate schedules: the interface and the ones that are built in."""
