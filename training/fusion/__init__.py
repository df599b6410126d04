"""The fit of a bundle's fusion on validation cases.

`fitted_pool` makes a pool, and `fit` its weights: `cases` makes the cases, `choices` ranks them and reads their
signals, `logit` finds the weights.
"""
