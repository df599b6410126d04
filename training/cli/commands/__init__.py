"""The commands of `gems`, one file for each command or group; only `training.cli` imports them."""
