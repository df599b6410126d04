"""`gems sweep`: the same training with several settings and seeds, and one table of all runs."""
