"""Hugging Face checkpoints: one table of tensors and one reader of options a family."""
