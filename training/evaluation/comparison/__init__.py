"""`gems compare`: systems side by side on the same cases, and the table of them."""
