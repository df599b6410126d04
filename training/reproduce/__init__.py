"""`gems reproduce`: every system of a table trained for the same time, and measured on the same cases."""
