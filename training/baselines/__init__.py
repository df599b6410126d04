"""What any claim of the generative model must face: SASRec, neural matrix factorisation, a dense bi-encoder.

`run` is `gems baseline`; each baseline keeps the interface of `baseline`.
"""
