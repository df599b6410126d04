"""The `gems` command line: one file per group of commands."""
