"""What transformers loads from a release: config, model and processor. `release/assemble.py` writes them out."""
