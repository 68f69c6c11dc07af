"""Labelled texts out of files, GLUE and the library datasets."""
