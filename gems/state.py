"""The state of weights and plain parameters, in the form of PyTorch's optimizers.

state          an entry for each parameter, by number; for a projected one, the subspaces of its matrices by name;
               matrices with one basis have one entry, at the first of them
param_groups   the settings of each group, and the numbers of its parameters
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gems.model.errors import GemsError
from gems.weights.plain import PlainParameters
from gems.weights.projected import ProjectedWeight

Groups = Sequence[dict[str, Any]]


def pack(weights: Sequence[ProjectedWeight], plain: PlainParameters, groups: Groups) -> dict[str, Any]:
    """Return `state` and `param_groups`. groups: `param_groups` of the optimizer, projected parameters first."""
    number = {id(p): k for k, p in enumerate(p for group in groups for p in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    for weight in weights:
        state.setdefault(number[id(weight.parts[0].parameter)], {})[weight.name] = weight.state_dict()
    state |= {number[id(plain.parameters[k])]: each for k, each in plain.state_dict().items()}
    numbered = [{**group, "params": [number[id(p)] for p in group["params"]]} for group in groups]
    return {"state": state, "param_groups": numbered}


def unpack(
    packed: Mapping[str, Any], weights: Sequence[ProjectedWeight], plain: PlainParameters, groups: Groups
) -> None:
    """Restore what `pack` returned. Raises `GemsError` if it is from another configuration; then nothing is changed."""
    count = len({id(part.parameter) for weight in weights for part in weight.parts})
    stored = {name: each for k in range(count) for name, each in packed["state"].get(k, {}).items()}
    if list(stored) != [weight.name for weight in weights]:
        raise GemsError("the state is of an optimizer with other layers")
    for weight in weights:
        try:
            stored[weight.name] = weight.own_rows(stored[weight.name])
            weight.check_state(stored[weight.name])
        except ValueError as error:
            raise GemsError(f"the state of {weight.name} is of another configuration: {error}") from error
    others = {k - count: each for k, each in packed["state"].items() if k >= count}
    sizes = [len(group["params"]) for group in packed["param_groups"]]
    if sizes != [len(group["params"]) for group in groups] or not plain.fits(others):
        raise GemsError("the state is of an optimizer with other plain parameters")
    for weight in weights:
        weight.load_state_dict(stored[weight.name])
    plain.load_state_dict(others)
    for group, kept in zip(groups, packed["param_groups"], strict=True):
        group.update({name: value for name, value in kept.items() if name != "params"})


def state_bytes(weights: Sequence[ProjectedWeight], plain: PlainParameters) -> int:
    """Return the bytes of state: bases, moments, remainders of bf16 weights."""
    spaces = [weight.subspaces for weight in weights]
    state = [t for s in spaces for t in (s.basis, s.first, s.second)]
    parts = [part for weight in weights for part in weight.parts]
    state += [part.remainder.low for part in parts if part.remainder is not None]
    return bytes_of(state + plain.tensors())


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of all elements."""
    return sum(t.numel() * t.element_size() for t in tensors)
