"""GEMS: one subspace for the gradients of each task, in addition to a shared one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gems import GEMS, find_linears, find_sites
from gems.model.errors import GemsError
from gems.model.layers import find_experts, outputs_and_inputs
from gems.weights.ranks import Ranks
from index.sequence.encoder import TASKS
from index.sequence.events import Task
from index.sequence.language_model import is_encoder_decoder
from training.config import TrainConfig
from training.methods.method import Setup
from training.model.rows import AddedRows


class GemsTuning:
    """Linear layers of the blocks in subspaces, and `plain` parameters by AdamW.

    plain: the added token rows; for a backbone from scratch, everything that is not projected.
    rows: the added token rows if they are weights of their own.
    multi_subspace: whether each task has its own gated subspace and its own backward pass. If not, there is
        one shared subspace and one pass over the summed loss.
    settings: further parameters of `GEMS`.
    """

    exportable = True

    def __init__(
        self,
        model: PreTrainedModel,
        plain: Iterable[nn.Parameter],
        *,
        rows: AddedRows | None,
        multi_subspace: bool,
        **settings: Any,
    ) -> None:
        self.rows = rows
        tasks = [task.value for task in TASKS] if multi_subspace else []
        self._multi_subspace = multi_subspace
        self._optimizer = GEMS(model, tasks, plain=plain, **settings)
        self._counted: set[Task] = set()

    @property
    def optimizer(self) -> GEMS:
        return self._optimizer

    @property
    def adamw(self) -> torch.optim.AdamW | None:
        return self._optimizer.adamw

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        weighted = {task.value: shares[task] * loss for task, loss in losses.items()}
        if not self._multi_subspace:
            self._optimizer.backward(sum(weighted.values(), start=next(iter(losses.values())).new_zeros(())))
            return
        fresh = set(losses) - self._counted  # shares belong to the whole step, so they count once
        self._optimizer.backward(
            weighted,
            values={task.value: loss.detach() for task, loss in losses.items()},
            samples={task.value: shares[task] for task in fresh},
        )
        self._counted |= fresh

    def step(self, learning_rate: float) -> dict[str, Any]:
        self._counted = set()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        figures: dict[str, Any] = dict(self._optimizer.figures())
        refreshed = self._optimizer.refreshed()
        return figures | ({"subspaces": refreshed} if refreshed else {})

    def narrow(self) -> None:
        self._optimizer.narrow()

    def widen(self) -> None:
        self._optimizer.widen()

    def exact_weights(self) -> dict[str, Tensor]:
        return self._optimizer.exact_weights()

    def merge(self) -> None:
        """Do nothing: the updates are in the weights already."""

    def costs(self) -> dict[str, int]:
        return self._optimizer.costs()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


def make(setup: Setup) -> GemsTuning:
    """Make GEMS with a subspace for each task if `multi_subspace` is on."""
    return in_subspaces(setup, multi_subspace=setup.config.gems.multi_subspace)


def check(model: nn.Module, config: TrainConfig) -> None:
    """Raise `GemsError` if a layer has no room for its subspaces, or experts are to be trained beside a null space."""
    check_ranks(model, config, multi_subspace=config.gems.multi_subspace)
    trained = (config.optimiser.other_weights or "frozen") != "frozen"
    if trained and config.knowledge.null_space and config.has_knowledge and find_experts(model):
        raise GemsError(
            "nothing is known of the inputs of a mixture's experts: leave optimiser.other_weights frozen, or turn "
            "knowledge.null_space off"
        )


def check_ranks(model: nn.Module, config: TrainConfig, *, multi_subspace: bool) -> None:
    """Raise `GemsError` if a layer has no room for its subspaces."""
    tasks = ("a", "b") if multi_subspace else ()
    ranks = Ranks(**config.gems.model_dump(include={field.name for field in fields(Ranks)}))
    for name, linear in find_linears(model).items():
        ranks.allot(name, outputs_and_inputs(linear), tasks, known=0)


def gems_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that go to `GEMS` under their own names.

    Only `optimiser.learning_rate` has another name there: every optimizer of PyTorch calls it `lr`.
    `multi_subspace` and `share_bases` are not among them: they decide whether `GEMS` is given tasks and sites.
    """
    return {
        "lr": config.optimiser.learning_rate,
        **config.optimiser.model_dump(include={"relative", "clip"}),
        **config.gems.model_dump(exclude={"multi_subspace", "share_bases"}),
        **config.knowledge.model_dump(include={"energy", "cap", "softness"}),
        "seed": config.seed,
    }


def in_subspaces(setup: Setup, *, multi_subspace: bool) -> GemsTuning:
    """Make the optimizer from the settings. Weights that are not projected stay frozen, unless the backbone is new."""
    linears = find_linears(setup.model)
    others = setup.other_weights("trained" if setup.config.from_scratch else "frozen")
    return GemsTuning(
        setup.model,
        others.plain,
        rows=others.rows,
        multi_subspace=multi_subspace,
        linears=linears,
        tables=others.tables,
        sites=_sites(setup.model, linears) if setup.config.gems.share_bases else None,
        knowledge=setup.knowledge,
        process_group=setup.parallel.group,
        **gems_settings(setup.config),
    )


def _sites(model: PreTrainedModel, linears: Mapping[str, nn.Module]) -> list[list[str]]:
    """Return the layers that read the same input, by group; found with two tokens."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    batch = {"input_ids": ids} | ({"decoder_input_ids": ids} if is_encoder_decoder(model) else {})
    return find_sites(model, batch, linears)
