"""The fit of a bundle's fusion on validation cases.

`fit` runs it: `cases` makes the cases, `choices` ranks them and reads their signals, `logit` finds the weights.
"""
