"""Helpers that are independent of distillation, each implemented only once."""
