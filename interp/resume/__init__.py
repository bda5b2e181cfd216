"""Sweeps that resume: a fingerprint of what is computed, and a journal of what is finished."""
