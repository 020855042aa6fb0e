"""The network, written for one device: vision.py, resampler.py, decoder.py, and video_lm.py that joins them."""
