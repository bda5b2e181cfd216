"""Views of results: the report folder and its page."""
