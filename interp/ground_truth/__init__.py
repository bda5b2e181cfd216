"""Models whose mechanism is known, and methods held against them."""
