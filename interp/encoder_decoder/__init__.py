"""Models that read one prompt in both directions and continue another: an encoder, and a decoder that looks at it."""
