"""Measuring a trained model: held-out loss, retrieval, questions about time with controls, captions."""
