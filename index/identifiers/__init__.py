"""Identifiers of items: the schemes, and the quantisers that they use.

`identifiers` defines the input and the output of a scheme, `registry` finds a scheme by its name, and `schemes` holds
one file for each scheme. `codebooks`, `kmeans`, `rqvae` and `balancing` quantise vectors. `alphafuse` fuses vectors of
text and behaviour.
"""
