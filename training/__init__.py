"""The offline side: assets, data sets, trainer, tuning methods, evaluation, the `gems` command line."""
