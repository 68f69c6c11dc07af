"""Tables and the page that compare runs."""
