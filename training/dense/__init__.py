"""The dense head of a trained model: maps that give every item a row by its vector (`index.pool.dense`).

`states` collects the hidden states that predict the items of the training log, and `fit` fits the maps to them.
"""
