"""Turn documents into shards: clean, tokenise, pack, split and write them with several processes."""
