"""Identifier schemes, one file each: the file `name.py` is the scheme `name` (`lower_case.py` is `lower-case`).

Each module has the two functions that `index.identifiers.identifiers` describes. The registry finds the modules by
name. Other code imports only the functions that later items and benchmarks need.
"""
