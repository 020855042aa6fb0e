"""Raw video-text pairs to a sharded training set. `run.py` is the journey; every other file is one step of it."""
