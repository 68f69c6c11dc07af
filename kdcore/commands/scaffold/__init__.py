"""Generate packages for new components."""
