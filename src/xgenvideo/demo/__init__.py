"""The demonstration: the whole journey from generated clips to a released model, with every figure measured."""
