"""Wrap DeepSpeed's engine, define the trained module, and read and write files of tensors."""

ENGINE_FOLDER = "engine"
"""Folder of the engine's files in a checkpoint."""
