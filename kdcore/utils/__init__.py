"""Helpers that know nothing of distillation, one implementation of each."""
