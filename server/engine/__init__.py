"""Ranking engines: one contract, one object for serving and for evaluation."""
