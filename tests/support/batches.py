"""Batches of random histories over a catalogue of 60 items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Task
from index.sequence.vocabulary import IdentifierVocabulary
from support.bundles import make_catalogue, make_identifiers, make_tokenizer
from support.histories import histories
from training.config.extra_task import ExtraTask
from training.loop.batches import BatchSource
from training.loop.extra_tasks import ExtraTasks
from training.loop.parts import Part

CATALOGUE = make_catalogue(60)
IDENTIFIERS = make_identifiers(60)
TOKENIZER = make_tokenizer(CATALOGUE.texts())
VOCABULARY = IdentifierVocabulary.for_tokenizer(TOKENIZER, IDENTIFIERS.codebook_sizes)
VOCABULARY.add_to(TOKENIZER)
ENCODER = SequenceEncoder(TOKENIZER, VOCABULARY, IDENTIFIERS.codes, max_tokens=200, max_events=10)


def in_rows(parts: Sequence[Part]) -> list[Part]:
    """Return a part for each row."""
    return [
        replace(part, **{name: x[k : k + 1] for name, x in vars(part).items() if x is not None})
        for part in parts
        for k in range(len(part.ids))
    ]


def titles(share: float) -> list[ExtraTask]:
    """Return the task of titles as queries."""
    return [ExtraTask(read="title", write="identifier", share=share)] if share else []


def source(title_queries: float = 0.0, **options: object) -> BatchSource:
    settings = {"batch_size": 8, "part_tokens": 400} | options
    if Task.SEARCH in settings.get("tasks", Task):  # type: ignore[operator]
        settings.setdefault("extra", ExtraTasks(titles(title_queries), CATALOGUE, ENCODER))
    return BatchSource(ENCODER, histories(), **settings)  # type: ignore[arg-type]
