"""Raw text to training sequences: readers, tokenizers, packing, shards on disk."""
