"""Commands of the `kdcore` command line, one file per command."""
