"""Identifier schemes, one file each: the file `name.py` is the scheme `name` (`lower_case.py` is `lower-case`).

Each module has the two functions that `index.identifiers.identifiers` describes. Nothing but the registry
imports this room by name, except for the functions that later items and benchmarks need.
"""
