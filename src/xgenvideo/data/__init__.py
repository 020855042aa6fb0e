"""Data on its way to the model: video sampling, shards, tokenizer, packed text, the loader, and the clip generator."""
