"""GEMS: the tasks' gradients in subspaces of their own beside a shared one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from gems import GEMS, find_linears
from gems.layers import ranks_of
from index.sequence.encoder import TASKS
from index.sequence.events import Task
from training.config import TrainConfig
from training.methods.method import Setup
from training.model.rows import AddedRows


class GemsTuning:
    """The blocks' linear layers in subspaces, `plain` parameters (the added token rows) by AdamW.

    With `multi_subspace` each task has a subspace of its own, gated, and a backward pass of its own;
    without, there is one shared subspace and one pass over the summed loss.
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

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        weighted = {task.value: shares[task] * loss for task, loss in losses.items()}
        if not self._multi_subspace:
            self._optimizer.backward(sum(weighted.values(), start=next(iter(losses.values())).new_zeros(())))
            return
        fresh = set(losses) - self._counted  # shares are those of the whole step: they count once
        self._optimizer.backward(
            weighted,
            values={task.value: float(loss.detach()) for task, loss in losses.items()},
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

    def merge(self) -> None:
        """Nothing to fold: the updates are in the weights."""

    def costs(self) -> dict[str, int]:
        return self._optimizer.costs()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


def make(setup: Setup) -> GemsTuning:
    """Make GEMS with a subspace for each task, as far as `multi_subspace` is on."""
    return in_subspaces(setup, multi_subspace=setup.config.multi_subspace)


def check(model: nn.Module, config: TrainConfig) -> None:
    """Raise `GemsError` where a subspace is larger than its layer."""
    check_ranks(model, config, multi_subspace=config.multi_subspace)


def check_ranks(model: nn.Module, config: TrainConfig, *, multi_subspace: bool) -> None:
    """Raise `GemsError` where a subspace is larger than its layer."""
    tasks = ("a", "b") if multi_subspace else ()
    task_rank = None if config.task_rank is None else _rank(config.task_rank)
    for name, linear in find_linears(model).items():
        ranks_of(name, linear, tasks, _rank(config.rank), task_rank, config.knowledge_cap, None, 0.0)


def in_subspaces(setup: Setup, *, multi_subspace: bool) -> GemsTuning:
    """Make the optimizer from the settings; what is not projected is frozen, unless the backbone is new."""
    model, config = setup.model, setup.config
    linears = find_linears(model)
    projected = {id(linear.weight) for linear in linears.values()}
    if config.from_scratch:
        rows = None
        plain = [p for p in model.parameters() if id(p) not in projected]
    else:
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in projected)
        rows = AddedRows(model, setup.first_added)
        plain = rows.parameters
    return GemsTuning(
        model,
        plain,
        rows=rows,
        multi_subspace=multi_subspace,
        linears=linears,
        lr=config.learning_rate,
        rank=_rank(config.rank),
        task_rank=None if config.task_rank is None else _rank(config.task_rank),
        scale=config.scale,
        refresh_every=config.refresh_every,
        stagger=config.stagger,
        knowledge=setup.knowledge,
        energy=config.knowledge_energy,
        cap=config.knowledge_cap,
        gate=config.gate,
        temperature=config.gate_temperature,
        deflate=config.deflation,
        transport=not config.stale_moments,
        joint=config.joint_gradients,
        rank_scaling=config.rank_scaling,
        growth_limit=config.growth_limit,
        relative=config.relative_rate,
        clip=config.clip,
        process_group=setup.parallel.group,
        seed=config.seed,
    )


def _rank(number: float) -> int | float:
    """Up to 1, a share of a layer's inputs; above, a count."""
    return float(number) if number <= 1 else round(number)
