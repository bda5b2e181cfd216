"""Two classes of prompts: directions between them, probes, steering."""
