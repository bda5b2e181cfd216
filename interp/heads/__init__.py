"""What attention heads do, from their patterns and from their weights."""
