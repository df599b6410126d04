"""Identifiers of items: the schemes, and the quantisers that they use.

`identifiers` defines the input and the output of a scheme, and `registry` finds schemes and quantisers by their names.
`schemes` and `quantisers` hold one file for each. `codebooks`, `levels`, `balancing` and `autoencoder` are what
quantisers have in common. `alphafuse` fuses vectors of text and behaviour.
"""
