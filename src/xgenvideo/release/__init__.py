"""A run to a release: safetensors shards, processor settings, hashes, and a model card of what was measured."""
