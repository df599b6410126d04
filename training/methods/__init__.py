"""Tuning methods: one interface, one file each."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from gems import KnowledgeBasis, find_linears
from gems.layers import ranks_of
from training.config import TrainConfig
from training.methods.contract import Method
from training.methods.full import FullTuning
from training.methods.gems import GemsTuning
from training.methods.lora import LoraTuning
from training.methods.lora_moe import LoraMoeTuning
from training.methods.pcgrad import PcgradTuning
from training.parallel import Parallel
from training.rows import AddedRows


def make_method(
    model: PreTrainedModel,
    config: TrainConfig,
    first_added: int,
    knowledge: KnowledgeBasis | None = None,
    parallel: Parallel | None = None,
) -> Method:
    """The method that the settings name, on a model whose added token rows begin at `first_added`.

    `full` and `pcgrad` train every weight. The others keep a pretrained backbone's own rows, norms and
    biases frozen and train the added rows by AdamW; with a backbone from scratch there is nothing to
    keep, and `gems` and `subspace` train all that they do not project by AdamW. Raises `GemsError`.
    """
    parallel = parallel or Parallel()
    shared = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay, "clip": config.clip}
    if config.method == "full":
        return FullTuning(model, relative=config.relative_rate, reduce=parallel.sum, **shared)
    if config.method == "pcgrad":
        return PcgradTuning(
            model, relative=config.relative_rate, reduce=parallel.sum, seed=config.seed, **shared
        )
    if config.method in ("gems", "subspace"):
        return _gems(model, config, first_added, knowledge, parallel)
    model.requires_grad_(False)
    rows = AddedRows(model, first_added)
    method: LoraTuning | LoraMoeTuning
    alpha = config.lora_alpha
    if config.method == "lora":
        method = LoraTuning(
            model,
            rows.parameters,
            rank=config.lora_rank,
            alpha=alpha,
            dropout=0.0,
            reduce=parallel.sum,
            **shared,
        )
    else:
        method = LoraMoeTuning(
            model, rows.parameters, rank=config.lora_rank, experts=config.experts, alpha=alpha, reduce=parallel.sum,
            **shared,
        )  # fmt: skip
    method.rows = rows
    return method


def check_ranks(model: nn.Module, config: TrainConfig) -> None:
    """Raises `GemsError` where a subspace is larger than its layer; before anything is written."""
    if config.method in ("gems", "subspace"):
        tasks = ("a", "b") if config.method == "gems" and config.multi_subspace else ()
        task_rank = None if config.task_rank is None else _rank(config.task_rank)
        for name, linear in find_linears(model).items():
            ranks_of(name, linear, tasks, _rank(config.rank), task_rank, config.knowledge_cap, None, 0.0)


def _gems(
    model: PreTrainedModel,
    config: TrainConfig,
    first_added: int,
    knowledge: KnowledgeBasis | None,
    parallel: Parallel,
) -> GemsTuning:
    linears = find_linears(model)
    projected = {id(linear.weight) for linear in linears.values()}
    if config.from_scratch:
        rows = None
        plain = [p for p in model.parameters() if id(p) not in projected]
    else:
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in projected)
        rows = AddedRows(model, first_added)
        plain = rows.parameters
    return GemsTuning(
        model,
        plain,
        rows=rows,
        multi_subspace=config.method == "gems" and config.multi_subspace,
        linears=linears,
        lr=config.learning_rate,
        rank=_rank(config.rank),
        task_rank=None if config.task_rank is None else _rank(config.task_rank),
        scale=config.scale,
        refresh_every=config.refresh_every,
        stagger=config.stagger,
        knowledge=knowledge,
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
        process_group=parallel.group,
        seed=config.seed,
    )


def _rank(number: float) -> int | float:
    """Up to 1, a share of a layer's inputs; above, a count."""
    return float(number) if number <= 1 else round(number)


__all__ = ["Method", "check_ranks", "make_method"]
