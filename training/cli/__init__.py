"""The `gems` command line: `main` gathers the commands and prints errors that a person can mend."""
