"""Training pairs of an encoder-decoder: the encoder reads a request, the decoder writes the item.

    encoder:  history <|recommendation|>    or    history <|search|> query tokens <|item|>
    decoder:  start c1 .. cL

A causal model computes the loss at every item of a sequence in one pass. An encoder reads in both directions, so each
target needs its own pass over everything before it. `targets` items of each logged sequence are drawn in each epoch.
Their histories reach back beyond the sequence, as they do in a request.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from index.sequence.encoder import Sample, SequenceEncoder
from index.sequence.events import Event, Task
from index.sequence.language_model import is_encoder_decoder, start_token


@dataclass(frozen=True)
class Pairs:
    """Maker of training pairs.

    start: start token of the decoder.
    targets: largest number of items of one logged sequence that are drawn.
    """

    encoder: SequenceEncoder
    start: int
    targets: int

    @classmethod
    def of(cls, model: PreTrainedModel, encoder: SequenceEncoder, targets: int) -> Pairs | None:
        """Return the maker of pairs for a model; None for a decoder-only model, which learns from whole sequences."""
        return cls(encoder, start_token(model), targets) if is_encoder_decoder(model) else None

    def draw(
        self,
        life: Sequence[Event],
        begin: int,
        rng: np.random.Generator,
        tasks: Collection[Task] = tuple(Task),
    ) -> list[Sample]:
        """Draw items among the events of some tasks from `begin` on, without replacement. Return their pairs.

        life: all events of a user up to the end of the sequence.
        """
        of_tasks = [k for k in range(begin, len(life)) if self.encoder.task_of(life[k]) in tasks]
        chosen = np.sort(rng.permutation(len(of_tasks))[: self.targets])
        return [self.pair(life[: of_tasks[k]], life[of_tasks[k]]) for k in chosen.tolist()]

    def pair(self, history: Sequence[Event], event: Event) -> Sample:
        """Make the pair of one event and the history before it."""
        return self.encoder.pair(history, event, self.start)
