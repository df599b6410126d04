"""Benchmarks that report ratios to peers and floors measured in the same run."""
