"""The rows of added tokens as weights of their own, while those of known tokens stay frozen or are tuned otherwise.

A table [V, d] would get a dense gradient of its own size in every step, mostly zeros. Here the added
rows are a parameter that shares the table's storage. Only this parameter has a gradient, and an update of
it changes the table directly. The known rows can be a second such parameter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.errors import UserError


class AddedRows:
    """The added rows of a model's token tables: trainable, while the tables are frozen in place.

    first: id of the first added token.
    train_known: whether the rows of the known tokens are trainable, too.
    parameters: one tensor [V − first, d] for a tied model, else one of the input and one of the output table.
    known: the same of the known rows, [first, d]; none if they are frozen.
    """

    def __init__(self, model: PreTrainedModel, first: int, *, train_known: bool = False) -> None:
        self._first = first
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tables = [embedding.weight] if head.weight is embedding.weight else [embedding.weight, head.weight]
        self._head, self._place = head, head.weight.data_ptr()
        modules = token_embeddings(model)
        for each in modules:
            if type(each) is not nn.Embedding and not hasattr(each, "embed_scale"):
                raise UserError(
                    f"the token embedding of this backbone, {type(each).__name__}, does more than look up rows: train "
                    "all of it (optimiser.other_weights trained)"
                )
        for table in tables:
            table.requires_grad_(False)
        self.parameters = [nn.Parameter(table.data[first:]) for table in tables]
        self.known = [nn.Parameter(table.data[:first]) for table in tables] if train_known else []
        for module in modules:
            module.register_forward_hook(self._look_up, prepend=True)  # before that of a `TextPart`

    def head(self, first: int, last: int) -> Tensor:
        """Return the rows `first` to `last` of the output table, [last − first, d]; the trainable ones have a gradient.

        Raises `RuntimeError` if the model was moved or cast since: it has another table then.
        """
        if self._head.weight.data_ptr() != self._place:
            raise RuntimeError("the model was moved or cast after its rows were taken; make AddedRows again")
        output = self.parameters[-1]
        if first >= self._first:
            return output[first - self._first : last - self._first]
        known = self.known[-1] if self.known else self._head.weight.detach()
        if last <= self._first:
            return known[first:last]
        return torch.cat([known[first : min(last, self._first)], output[: max(0, last - self._first)]])

    def _look_up(self, module: nn.Module, inputs: tuple[Any, ...], found: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return found  # the table holds the same values
        ids = inputs[0]
        scale = getattr(module, "embed_scale", 1.0)  # Gemma multiplies rows by a constant
        added = F.embedding((ids - self._first).clamp(min=0), self.parameters[0]) * scale
        if self.known:
            found = F.embedding(ids.clamp(max=self._first - 1), self.known[0]) * scale
        return torch.where((ids >= self._first).unsqueeze(-1), added, found)


def token_embeddings(model: PreTrainedModel) -> list[nn.Embedding]:
    """Return the modules that look tokens up: encoder and decoder of a T5 each have one, which share the weight."""
    weight = model.get_input_embeddings().weight
    return [each for each in model.modules() if isinstance(each, nn.Embedding) and each.weight is weight]
