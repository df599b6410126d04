"""Backbones as training sees them: loading, added tokens and rows, forward passes of both kinds."""
