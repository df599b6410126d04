"""`gems sweep`: the same training under several settings and seeds, and one table of all of them."""
