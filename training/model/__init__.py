"""Backbones for training: loading, added tokens and rows, forward passes of both kinds."""
