"""Raw video-text pairs to a sharded training set. `pipeline.py` is the journey; every other file is one step of it."""
