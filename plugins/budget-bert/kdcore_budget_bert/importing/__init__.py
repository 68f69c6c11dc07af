"""`kdcore recipe import`: conversion of commands of the source system to recipes."""
