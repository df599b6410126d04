"""`gems compare`: a comparison of systems on the same cases, and its table."""
