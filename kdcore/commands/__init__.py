"""What `kdcore` can do on the command line; one file a command."""
