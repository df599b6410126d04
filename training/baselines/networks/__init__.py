"""Networks of the baselines, pure PyTorch: no data sets, no files."""
