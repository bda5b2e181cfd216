"""Sweeps over models with an encoder and a decoder: what an edit in either stack reaches, and running no more."""
