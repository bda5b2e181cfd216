"""What every model can do, whatever its layers are: hooks, caches, text in and out."""
