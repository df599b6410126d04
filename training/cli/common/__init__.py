"""What several commands use: flags made from settings, and quiet libraries."""
