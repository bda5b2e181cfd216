"""The walk: one prompt on its way through a model, step by step, with the numbers of this run at each."""
