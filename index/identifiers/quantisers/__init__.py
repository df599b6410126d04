"""Quantisers of item vectors, one file each: the file `name.py` is the quantiser `name`.

Each module has the function that `index.identifiers.registry.Quantiser` describes.
"""
