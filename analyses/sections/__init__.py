"""What the report of a task says of each study: one file each, `report` for its section and `ORDER` for its place."""
