"""Prompts of your own: pairs from CSV, JSON and JSON-lines files, whatever their columns are called."""
