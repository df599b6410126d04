"""Tuning methods by name: each file of `training.methods.tuning` is one."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from gems import KnowledgeBasis
from index.extensions import load_choice
from training.config import METHODS, TrainConfig
from training.methods.method import Method, Setup
from training.run.parallel import Parallel


def make_method(
    model: PreTrainedModel,
    config: TrainConfig,
    first_added: int,
    knowledge: KnowledgeBasis | None = None,
    parallel: Parallel | None = None,
) -> Method:
    """Make the method that the settings name, on a model whose added token rows begin at `first_added`.

    `full` and `pcgrad` train every weight. The others keep a pretrained backbone's own rows, norms and
    biases frozen and train the added rows by AdamW; with a backbone from scratch there is nothing to
    keep, and `gems` and `subspace` train all that they do not project by AdamW. Raises `GemsError`.
    """
    setup = Setup(model, config, first_added, knowledge, parallel or Parallel())
    method: Method = load_choice(METHODS, config.method).make(setup)
    return method


def check_method(model: nn.Module, config: TrainConfig) -> None:
    """Raise what the method has against the settings or the model, before anything is written."""
    check = getattr(load_choice(METHODS, config.method), "check", None)
    if check is not None:
        check(model, config)
