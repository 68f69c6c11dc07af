"""Helpers that are independent of distillation, one implementation of each."""
