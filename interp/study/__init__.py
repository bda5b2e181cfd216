"""What every study in `analyses` shares: its command, its provenance, whether the model can do the task."""
