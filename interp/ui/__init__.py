"""What a reader sees: a report's page in its folder, and tables on the terminal."""
