"""Read labelled texts from files, GLUE and the library `datasets`."""
