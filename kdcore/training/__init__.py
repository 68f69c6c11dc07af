"""Train the student of a recipe: engine, loop, checkpoints, validation, export."""
