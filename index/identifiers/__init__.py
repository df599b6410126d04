"""From items to identifiers: what a scheme is, and the quantisers that schemes use.

`identifiers` says what a scheme is given and makes, `registry` finds a scheme by its name, `schemes` holds
one file for each. `codebooks`, `kmeans`, `rqvae` and `balancing` quantise vectors; `alphafuse` fuses vectors
of text and behaviour.
"""
