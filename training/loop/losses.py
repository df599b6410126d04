"""Loss of both tasks from one forward pass: every item in a part is a target.

Let c_1 .. c_L be the identifier of an item, E the rows of the head, and h the hidden state of the last token before
c_j. The tokens before the identifier are read by the encoder if there is one.

    level:       nll = −Σ_j log softmax(E_level(j) h)[c_j]      (softmax over the codebook of level j)
    vocabulary:  nll = −Σ_j log softmax(E h)[token(c_j)]        (softmax over all tokens)

    L_task = (1 / N_task) Σ_{items and texts of the task} nll

A text that is written (a title, a query) has tokens w_1 .. w_n of the backbone's own, and counts like one item, however
long it is:

    nll = −(1/n) Σ_i log softmax(E_known h)[w_i]                (softmax over the known tokens)
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from transformers import PreTrainedModel

from index.sequence.encoder import TASKS, TEXT
from index.sequence.events import Task
from index.sequence.vocabulary import IdentifierVocabulary
from training.loop.cross_entropy import summed_cross_entropy
from training.loop.parts import Part
from training.model.forward import decoder_only_states, encoder_decoder_states, to_device
from training.model.rows import AddedRows
from training.model.text_part import TextPart


def item_losses(
    model: PreTrainedModel,
    vocabulary: IdentifierVocabulary,
    part: Part,
    normalisation: str,
    rows: AddedRows | None = None,
    text: TextPart | None = None,
    always: Collection[Task] = (),
    temperature: float = 1.0,
) -> dict[Task, Tensor]:
    """Return the summed negative log-likelihood (nats) of the items and texts of each task; scalars with gradient.

    normalisation: "level" or "vocabulary", see above.
    rows: the added token rows if they are weights of their own.
    text: the part of the item rows that their texts decide, if it is not in the tables; inside its `added`.
    always: tasks that have a loss, of zero, also without an item in the part; it reaches the states.
    temperature: by which the logits of codes are divided: below 1, codes that come close cost more.
    A task without an item in the part is left out. Only the needed rows of the head are computed.
    """
    hidden = part_states(model, part)[:, :-1].flatten(0, 1)  # [B (T-1), d]
    # the part is on the host, which so knows how many answers there are without waiting for the device
    target, level, task = (each[:, 1:].flatten() for each in (part.ids, part.level, part.task))
    head = model.get_output_embeddings().weight
    hidden = hidden.to(head.dtype)  # logits and softmax in float32, whatever the blocks were computed in
    totals: dict[Task, Tensor] = {name: hidden[:0].sum() for name in TASKS if name in always}
    # Levels that share a softmax, by the rows of the head that it covers.
    levels: dict[tuple[int, int], list[int]] = {}
    for j in range(vocabulary.levels):
        span = vocabulary.span(j) if normalisation == "level" else (0, len(head))
        levels.setdefault(span, []).append(j)

    def add(written: Tensor, used: Tensor, first: int, weights: Tensor | None = None) -> None:
        """Add the loss of the positions where `written` holds. used: rows of the head from `first` on."""
        for k, name in enumerate(TASKS):
            # logits of each task apart: methods that run a backward pass for each task pay for its rows only
            where = (written & (task == k)).nonzero().squeeze(1)
            if len(where):
                wanted = to_device(target[where] - first, hidden.device)
                states = hidden[to_device(where, hidden.device)]
                chosen = None if weights is None else to_device(weights[where], hidden.device)
                if weights is None and temperature != 1:
                    states = states / temperature
                nll = summed_cross_entropy(states, used, wanted, chosen)
                totals[name] = totals[name] + nll if name in totals else nll

    for (first, last), shared in levels.items():
        written = torch.isin(level, torch.tensor(shared, dtype=level.dtype))
        used = head[first:last] if rows is None else rows.head(first, last)
        if text is not None:
            used = used + text.head(first, last)
        add(written, used, first)
    written = level == TEXT
    if written.any():
        known, weights = vocabulary.first_added, text_weights(part.level)[:, 1:].flatten()
        add(written, head[:known] if rows is None else rows.head(0, known), 0, weights)
    return totals


def text_weights(level: Tensor) -> Tensor:
    """Return 1 / n for each token of a text of n tokens that is written, 0 for other tokens: float32 [B, T].

    level: int8 [B, T], as in `Part`. No row begins with a token of such a text.
    """
    written = (level == TEXT).flatten()
    begins = written & ~written.roll(1)
    text = begins.cumsum(0)[written] - 1
    weights = torch.zeros(len(written))
    weights[written] = 1 / torch.bincount(text)[text]
    return weights.view(level.shape)


def part_states(model: PreTrainedModel, part: Part) -> Tensor:
    """Return the hidden states of a part, [B, T, d], on the model's device."""
    ids, position, prompt, attended = (
        None if each is None else to_device(each, model.device)
        for each in (part.ids, part.position, part.prompt, part.attended)
    )
    assert ids is not None
    if prompt is None or attended is None:
        return decoder_only_states(model, ids, position)
    return encoder_decoder_states(model, prompt, attended, ids)
