"""All that is DeepSpeed, the module that is trained, and the files that hold tensors."""

ENGINE_FOLDER = "engine"
"""Folder of the engine's files in a checkpoint."""
