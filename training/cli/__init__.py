"""The `gems` command line: `main` collects the commands, and prints errors that the user can fix."""
