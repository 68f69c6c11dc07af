"""Tasks: data, batches and the kind of head they need."""
