"""Codes of items that are learned together with the language model, in a stage of the training.

`stage` runs it: it takes a preparation, trains a `learner` (DIGER or GenRet) by `loop`, and leaves a preparation with
the codes and the weights that it has learned. The training goes on from that with fixed codes, as from any other.
"""
