"""Preparation of a training: identifiers, fused item vectors, the extended backbone, the knowledge basis.

`preparation` makes and opens the folder that holds them.
"""
