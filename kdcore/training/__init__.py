"""From a recipe to a trained student: engine, loop, checkpoints, validation, export."""
