"""Sweeps that resume: what was asked for, and what is already done."""
