"""The rows of added tokens as weights of their own, while all other rows of the table stay frozen.

A table [V, d] would get a dense gradient of its own size in every step, mostly zeros. Here the added
rows are a parameter that shares the table's storage: it alone has a gradient, and what an optimizer
does to it is in the table at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class AddedRows:
    """Freezes the token tables of a model and makes the rows from `first` on trainable, in place.

    parameters: one [V − first, d] for a tied model, else those of the input and of the output table.
    """

    def __init__(self, model: PreTrainedModel, first: int) -> None:
        self._first = first
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        self._input = _trainable(embedding.weight, first)
        self._head, self._place = head, head.weight.data_ptr()
        tied = head.weight is embedding.weight
        self._output = self._input if tied else _trainable(head.weight, first)
        self.parameters: list[nn.Parameter] = [self._input] if tied else [self._input, self._output]
        for module in model.modules():  # T5's encoder and decoder each have a table that shares the weight
            if isinstance(module, nn.Embedding) and module.weight is embedding.weight:
                module.register_forward_hook(self._look_up)

    def head(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of the output table [last − first, d], with gradient for the added ones.

        Raises `RuntimeError` where the model was moved or cast since: its table is another one then.
        """
        if self._head.weight.data_ptr() != self._place:
            raise RuntimeError("the model was moved or cast after its rows were taken; make AddedRows anew")
        if first >= self._first:
            return self._output[first - self._first : last - self._first]
        known = self._head.weight[first : min(last, self._first)].detach()
        return torch.cat([known, self._output[: max(0, last - self._first)]])

    def _look_up(self, _: nn.Module, inputs: tuple[Any, ...], found: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return found  # the table holds the same values
        ids = inputs[0]
        added = F.embedding((ids - self._first).clamp(min=0), self._input)
        return torch.where((ids >= self._first).unsqueeze(-1), added, found)


def _trainable(table: Tensor, first: int) -> nn.Parameter:
    table.requires_grad_(False)
    return nn.Parameter(table.data[first:])
