"""Baselines for the generative model: SASRec, neural matrix factorisation, a dense bi-encoder.

`run` is `gems baseline`; each baseline returns a `Baseline` of `baseline`.
"""
