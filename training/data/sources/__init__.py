"""Public data sets: MovieLens and Amazon Beauty, with simulated searches.

Each file converts one source; `simulation` makes the choices that the sources lack.
"""
