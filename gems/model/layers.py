"""The weight matrices that are tuned in subspaces: where they are in a model, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gems.model.errors import GemsError

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Matrix:
    """One weight matrix W [m, n] (outputs × inputs; rows × columns of a table) within a parameter.

    layer: the module that the weight belongs to; None for an expert or a table.
    transposed: whether the parameter stores [n, m].
    expert: index in the first dimension of a parameter that holds the matrices of several experts.
    """

    name: str
    parameter: nn.Parameter
    layer: nn.Module | None = None
    transposed: bool = False
    expert: int | None = None

    @property
    def is_table(self) -> bool:
        """Whether it is a table of rows, which has no inputs."""
        return self.layer is None and self.expert is None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the view [m, n] of a tensor in the form of the parameter: itself, its data or its gradient."""
        part = tensor if self.expert is None else tensor[self.expert]
        return part.T if self.transposed else part

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs m and inputs n."""
        m, n = self.of(self.parameter).shape
        return m, n


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is GPT-2's `Conv1D`, a linear layer that stores its weight as [n, m]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def outputs_and_inputs(layer: nn.Module) -> tuple[int, int]:
    """Return outputs m and inputs n of a linear layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    m, n = weight.T.shape if is_transposed(layer) else weight.shape
    return m, n


def find_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Return every linear layer with a trainable weight, by the name of its weight, without the output head.

    Linear layers are `nn.Linear` and GPT-2's `Conv1D`. The output head is the layer that `get_output_embeddings()`
    returns, or a layer that shares its weight with an embedding.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    taken = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not (isinstance(module, nn.Linear) or is_transposed(module)) or module is head:
            continue
        weight = module.weight
        if id(weight) not in taken:
            taken.add(id(weight))
            if weight.requires_grad:
                found[f"{name}.weight" if name else "weight"] = module
    return found


def find_experts(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights [experts, ·, ·] of mixtures of experts that hold all experts in one parameter.

    They belong to a module whose class is called `…Experts`, as all of `transformers` are.
    """
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3 and parameter.requires_grad:
                    found[f"{name}.{own}" if name else own] = parameter
    return found


def matrices_of(
    linears: Mapping[str, nn.Module],
    experts: Mapping[str, nn.Parameter],
    tables: Mapping[str, nn.Parameter],
) -> list[Matrix]:
    """Return the matrices of linear layers, one for each expert, and tables of rows.

    Raises `GemsError` if one cannot be tuned.
    """
    found = []
    for name, layer in linears.items():
        weight = layer.weight
        if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
            raise GemsError(f"{name} is no linear layer: its weight must be a parameter with two dimensions")
        found.append(Matrix(name, weight, layer, is_transposed(layer)))
    for name, parameter in experts.items():
        if parameter.ndim != 3:
            raise GemsError(
                f"{name} has {parameter.ndim} dimensions; weights of experts have three (expert, ·, ·)"
            )
        found += [Matrix(f"{name}.{k}", parameter, expert=k) for k in range(len(parameter))]
    for name, parameter in tables.items():
        if parameter.ndim != 2:
            raise GemsError(f"{name} has {parameter.ndim} dimensions; a table of rows has two")
        if not parameter.requires_grad:
            raise GemsError(f"the table {name} is frozen; leave it out, or let it require a gradient")
        found.append(Matrix(name, parameter))
    names = [matrix.name for matrix in found]
    if len(set(names)) < len(names):
        raise GemsError(f"{next(name for name in names if names.count(name) > 1)} names two weights")
    first: dict[tuple[int, int | None], str] = {}
    for matrix in found:
        other = first.setdefault((id(matrix.parameter), matrix.expert), matrix.name)
        if other != matrix.name:
            raise GemsError(f"{other} and {matrix.name} are one weight; give it once")
        if matrix.parameter.dtype not in DTYPES:
            raise GemsError(
                f"{matrix.name} is {matrix.parameter.dtype}; small updates need fp32 or bf16 weights"
            )
    return found


def stacks(matrices: Sequence[Matrix], sites: Iterable[Sequence[str]]) -> list[list[Matrix]]:
    """Return the matrices in groups that share a basis, in the order of the first of each group.

    sites: names of the matrices of a group. A matrix that is in none stands for itself.
    Raises `GemsError` for an unknown name, a name in two groups, and a group with different inputs or types.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    group_of: dict[str, int] = {}
    for number, names in enumerate(sites):
        for name in names:
            if name not in by_name or by_name[name].layer is None:
                raise GemsError(f"sites name {name}, which is none of the linear layers that are tuned")
            if name in group_of:
                raise GemsError(f"sites name {name} twice")
            group_of[name] = number
        kinds = {
            (by_name[name].shape[1], by_name[name].parameter.dtype, by_name[name].parameter.device)
            for name in names
        }
        if len(kinds) > 1:
            raise GemsError(f"{', '.join(names)} cannot share a basis: their inputs, types or devices differ")
    groups: dict[object, list[Matrix]] = {}
    for matrix in matrices:
        groups.setdefault(group_of.get(matrix.name, matrix.name), []).append(matrix)
    return list(groups.values())
