"""Models whose mechanism is known, methods held against them, and small models that learn to copy."""
