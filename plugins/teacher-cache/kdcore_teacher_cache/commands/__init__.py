"""Commands of kdcore-teacher-cache."""
