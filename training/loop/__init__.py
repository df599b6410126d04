"""The training loop: batches, losses, validation, checkpoints and the conflict probe around one `Trainer`.

`training.pipeline` puts them together.
"""
