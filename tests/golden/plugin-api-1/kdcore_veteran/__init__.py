"""A package for kdcore 0.1, as its `kdcore plugins new` wrote it, with a class task and a command beside."""
