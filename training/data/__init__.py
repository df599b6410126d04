"""Data sets: the format on disk, reading your own files, splits, item vectors, general text.

Import `DataSet` from `dataset` and the splits from `splits`. Public data sets are in `sources`.
"""
