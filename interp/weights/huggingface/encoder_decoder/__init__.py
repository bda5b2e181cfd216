"""Families of Hugging Face models that have an encoder and a decoder: their options, and where their weights lie."""
