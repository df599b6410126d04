"""Baselines for the generative model: SASRec, DreamRec, neural matrix factorisation, a bi-encoder, UnifiedSSR.

`run` is `gems baseline`; each baseline returns a `Baseline` of `baseline`.
"""
