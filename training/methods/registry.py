"""Tuning methods by name: each file of `training.methods.tuning` is a method."""

from __future__ import annotations

from transformers import PreTrainedModel

from gems import KnowledgeBasis
from index.extensions import load_choice
from index.sequence.language_model import is_encoder_decoder
from training.config import METHODS, TrainConfig
from training.errors import UserError
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

    `full` and those that combine the tasks' gradients (`pcgrad`, `upgrad`, …) train every weight. The other methods
    keep the rows, norms and biases of a pretrained backbone frozen and train the added rows by AdamW.
    `optimiser.other_weights` changes this for all of them. A backbone from scratch has nothing to keep: `gems` and
    `subspace` then train by AdamW everything that they do not project.

    first_added: id of the first added token.
    knowledge: basis of directions that `gems` leaves alone.
    Raises `GemsError` if the settings do not fit the model.
    """
    setup = Setup(model, config, first_added, knowledge, parallel or Parallel())
    method: Method = load_choice(METHODS, config.method).make(setup)
    return method


def check_method(model: PreTrainedModel, config: TrainConfig) -> None:
    """Raise an error if the method cannot train this model with these settings; nothing is written yet."""
    if config.backbone.precision == "bfloat16" and is_encoder_decoder(model):
        raise UserError(
            "backbone.precision 'bfloat16' is for decoder-only backbones, since the engine that validates reads an "
            "encoder-decoder's layers one by one, in one number format: choose 'autocast'"
        )
    check = getattr(load_choice(METHODS, config.method), "check", None)
    if check is not None:
        check(model, config)
