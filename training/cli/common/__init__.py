"""Shared parts of the commands: flags made from settings, and quiet libraries."""
