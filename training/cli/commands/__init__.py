"""The commands of `gems`, one file for each command or group; only `training.cli.main` imports them."""
