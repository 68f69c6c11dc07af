"""Interface of transforms, which change the student between the stages of a run."""
