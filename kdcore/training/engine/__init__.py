"""The DeepSpeed engine, the trained module, and files of tensors."""

ENGINE_FOLDER = "engine"
"""Folder of the engine's files in a checkpoint."""
