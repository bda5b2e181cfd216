"""Checkpoints to named tensors: one reader a file format, one mapping a model family."""
