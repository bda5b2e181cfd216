"""Gradients of a metric, and estimates of what a sweep would measure."""
