"""Store the signals of a teacher, and train from them."""
