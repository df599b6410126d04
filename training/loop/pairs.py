"""Training pairs of an encoder-decoder: its encoder reads a request, its decoder writes the item that answers it.

    encoder:  history <|recommendation|>    or    history <|search|> query tokens <|item|>
    decoder:  start c1 .. cL

A causal model has the loss at every item of a sequence from one pass. An encoder reads in both directions, so that each
target needs a pass of its own over all that came before it. Of the items of a logged sequence, `targets` are drawn
anew each epoch; their histories reach back beyond the sequence, as they do when the model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from index.sequence.encoder import Sample, SequenceEncoder
from index.sequence.events import Event
from index.sequence.language_model import is_encoder_decoder, start_token


@dataclass(frozen=True)
class Pairs:
    """start: the decoder's start token. targets: of one logged sequence, at most."""

    encoder: SequenceEncoder
    start: int
    targets: int

    @classmethod
    def of(cls, model: PreTrainedModel, encoder: SequenceEncoder, targets: int) -> Pairs | None:
        """None for a decoder-only model, which learns from whole sequences."""
        return cls(encoder, start_token(model), targets) if is_encoder_decoder(model) else None

    def draw(self, life: Sequence[Event], begin: int, rng: np.random.Generator) -> list[Sample]:
        """Pairs for items of a life from its event `begin` on, drawn without replacement."""
        count = len(life) - begin
        chosen = begin + np.sort(rng.permutation(count)[: self.targets])
        return [self.pair(life[:k], life[k]) for k in chosen.tolist()]

    def pair(self, history: Sequence[Event], event: Event) -> Sample:
        return self.encoder.pair(history, event, self.start)
