"""From the config.json of each family to a `ModelConfig`, and back."""
