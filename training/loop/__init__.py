"""The training loop: batches, losses, validation, checkpoints and the conflict probe around one `Trainer`.

Import `Trainer` and what it is made from; `pipeline` puts them together.
"""
