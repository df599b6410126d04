"""The GEMS method (gradient multi-subspace tuning), in pure PyTorch. No files, no data, no HTTP."""
