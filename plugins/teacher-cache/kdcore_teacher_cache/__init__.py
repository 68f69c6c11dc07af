"""Store the signals of a teacher, and train with the stored signals."""
