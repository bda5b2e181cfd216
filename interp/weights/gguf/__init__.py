"""GGUF files: the container, its configuration, its tokenizer, its tensors."""
