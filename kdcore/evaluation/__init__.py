"""How well a student agrees with its teacher, and what it costs."""
