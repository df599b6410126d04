"""Input sites: layers that read the same tensor, such as queries, keys and values of an attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gems.model.errors import GemsError
from gems.model.layers import find_linears

Inputs = Mapping[str, Any] | Tensor


def find_sites(
    model: nn.Module, batch: Inputs, linears: Mapping[str, nn.Module] | None = None
) -> list[list[str]]:
    """Return the weight names of the layers of a module that read the same input, such as q, k and v, by group.

    Runs one forward pass. A layer that is alone is in no group.
    batch: arguments for a call of the model: keyword arguments, or one tensor.
    linears: weight name → layer; those of `find_linears` if not given.
    Raises `GemsError` if a layer is not used.
    """
    with evaluating(model), torch.no_grad():
        sites = sites_of(model, batch, linears or find_linears(model))
    groups: dict[tuple[str, str], list[str]] = {}
    for site, names in sites.items():
        for name in names:
            groups.setdefault((site, name.rpartition(".weight")[0].rpartition(".")[0]), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def sites_of(model: nn.Module, batch: Inputs, linears: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return the layers grouped by the tensors that they read: site (name of its first layer) → weight names."""
    read: dict[str, list[Tensor]] = {}  # more than one tensor if the model uses a layer more than once

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: read.setdefault(name, []).append(inputs[0])

    with listening({name: note(name) for name in linears}, linears):
        call(model, batch)
    unused = set(linears) - set(read)
    if unused:
        raise GemsError(f"{min(unused)} was not used by the model on this input")
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, tensors in read.items():
        groups.setdefault(tuple(map(id, tensors)), []).append(name)
    return {names[0].removesuffix(".weight"): names for names in groups.values()}


@contextmanager
def listening(
    hooks: Mapping[str, Callable[[nn.Module, tuple[Any, ...]], None]], linears: Mapping[str, nn.Module]
) -> Iterator[None]:
    """Call hooks, by weight name, with the inputs of these layers inside the block."""
    handles = [linears[name].register_forward_pre_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off inside the block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def call(model: nn.Module, batch: Inputs) -> None:
    """Call the model with one tensor, or with keyword arguments."""
    if isinstance(batch, Tensor):
        model(batch)
    else:
        model(**batch)
