"""Tuning methods: one interface, one file each."""

from __future__ import annotations

from transformers import PreTrainedModel

from training.config import TrainConfig
from training.methods.contract import Method
from training.methods.full import FullTuning

METHODS = {"full": FullTuning}


def make_method(model: PreTrainedModel, config: TrainConfig) -> Method:
    return METHODS[config.method](model, config)


__all__ = ["METHODS", "Method", "make_method"]
