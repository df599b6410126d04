"""Answers as a table: one row for each item, best first, below the key of its request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

from server.api.responses import Answer
from training.bulk.entry import Entry


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over requests and their answers.

    requests: all of them. items: rows of the table.
    empty: answers without any item. short: those with fewer items than `limit`, empty ones too.
    no_history: recommendations without a single known item in the history. popular: answered by popularity for it.
    unknown_items: entries of histories with an item that the catalogue does not hold.
    new_items: entries of histories with an item that the model does not read, because it is newer.
    unknown_candidates: candidates that the catalogue does not hold, over all requests.
    """

    requests: int = 0
    items: int = 0
    empty: int = 0
    short: int = 0
    no_history: int = 0
    popular: int = 0
    unknown_items: int = 0
    new_items: int = 0
    unknown_candidates: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_json(self) -> str:
        """Return the counts as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, entries: Sequence[Entry], answers: Sequence[Answer]) -> Tally:
        """Count answers. entries: their requests."""
        histories = [len(entry.fields.get("history") or []) for entry in entries]
        dropped = [answer.dropped for answer in answers]
        return cls(
            requests=len(answers),
            items=sum(len(answer.items) for answer in answers),
            empty=sum(not answer.items for answer in answers),
            short=sum(answer.fewer_than_limit is not None for answer in answers),
            no_history=sum(
                answer.task == "recommendation" and each.unknown_count == length
                for answer, each, length in zip(answers, dropped, histories, strict=True)
            ),
            popular=sum(answer.fallback is not None for answer in answers),
            unknown_items=sum(each.unknown_count for each in dropped),
            new_items=sum(each.new_events for each in dropped),
            unknown_candidates=sum(each.unknown_candidates_count for each in dropped),
        )


def schema_of(column: str) -> pa.Schema:
    """Return the schema of the output. column: name of the keys' column."""
    return pa.schema(
        [
            pa.field(column, pa.string(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("score", pa.float64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("relevance", pa.float64()),
        ]
    )


def table_of(column: str, entries: Sequence[Entry], answers: Sequence[Answer]) -> pa.Table:
    """Return the items of answers, in order. An answer without items has no row."""
    rows = [
        (entry.key, item.rank, item.item_id, item.score, item.source, item.relevance)
        for entry, answer in zip(entries, answers, strict=True)
        for item in answer.items
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    schema = schema_of(column)
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )
