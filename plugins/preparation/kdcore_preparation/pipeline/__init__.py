"""From documents to shards: cleaned, tokenised, packed, split, written by several processes."""
