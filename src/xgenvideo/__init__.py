"""X-Gen-Video: pre-training of long-form video language models, from raw video to a released model."""

__version__ = "0.1.0"
