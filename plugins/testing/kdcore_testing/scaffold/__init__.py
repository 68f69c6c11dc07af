"""Generate packages with new components: `kdcore plugins new`."""
