"""Wikipedia dumps: pages, their wikitext, and the plain text in it."""
