"""Weights outside of the linear layers: token table, norms and biases. A method trains them, or leaves them alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from gems import find_linears
from training.model.rows import AddedRows
from training.model.text_part import maps_of


@dataclass(frozen=True)
class OtherWeights:
    """The trained weights outside of the linear layers. Added token rows and the maps of their text are always trained.

    plain: those that AdamW trains.
    tables: by name, rows of known tokens that are tuned in subspaces.
    rows: the added token rows if they are weights of their own; None where the whole table is trained.
    """

    plain: list[nn.Parameter]
    tables: dict[str, nn.Parameter] = field(default_factory=dict)
    rows: AddedRows | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, first_added: int, training: str) -> OtherWeights:
        """Choose them, and freeze the rest of them.

        model: all of its weights are trainable.
        first_added: id of the first added token.
        training: `frozen`, `trained` or `subspace`, see the setting `optimiser.other_weights`.
        """
        linear = {id(layer.weight) for layer in find_linears(model).values()}
        others = [p for p in model.parameters() if id(p) not in linear]
        if training == "trained":
            return cls(others)
        maps = maps_of(model)
        if training == "frozen":
            for parameter in others:
                parameter.requires_grad_(False)
            for each in maps:
                each.requires_grad_(True)
            rows = AddedRows(model, first_added)
            return cls([*rows.parameters, *maps], rows=rows)
        rows = AddedRows(model, first_added, train_known=True)
        names = ("token_table", "output_table")
        tables = dict(zip(names, rows.known, strict=False))
        return cls([*rows.parameters, *(p for p in others if p.requires_grad)], tables, rows)
