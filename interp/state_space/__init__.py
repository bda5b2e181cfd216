"""State-space layers: the scan, its states, and the mixers of Mamba-1 and Mamba-2."""
