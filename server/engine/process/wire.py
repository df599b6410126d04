"""Messages between the server and its engine process: JSON, read into checked types. Nothing is unpickled.

Tries are not sent: both sides map the same files, and a request names the version of the index. Of `Allowed` only the
chosen slots are sent, as bits or as a list, whichever is shorter, and the excluded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from index.trie.allowed import Allowed, SlotSet
from server.engine.contract import Ranking, RankRequest

_VALUES = [each.name for each in fields(RankRequest) if each.name not in ("allowed", "cancelled")]


class _Message(BaseModel):
    # NaN and infinite scores pass; the service refuses them.
    model_config = ConfigDict(
        frozen=True, ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"
    )


class Chosen(_Message):
    """A `SlotSet` of so many slots. slots: their numbers, int32, or one bit each, in little-endian words."""

    form: Literal["bits", "numbers"]
    slots: bytes

    @classmethod
    def of(cls, chosen: SlotSet) -> Chosen:
        if chosen.members.nbytes < chosen.bits.words.nbytes:
            return cls(form="numbers", slots=chosen.members.tobytes())
        return cls(form="bits", slots=chosen.bits.words.tobytes())

    def slot_set(self, total: int) -> SlotSet:
        if self.form == "numbers":
            return SlotSet.of_members(np.frombuffer(self.slots, np.int32), total)
        member = np.unpackbits(np.frombuffer(self.slots, np.uint8), count=total, bitorder="little")
        return SlotSet.of(member.astype(bool))


class WireRequest(_Message):
    """A `RankRequest` on its way to the engine's process.

    values: all its fields but `allowed` and `cancelled`.
    version: name of the index version that `allowed` belongs to.
    kind: number of its identifiers among `ItemIndex.every_names`.
    chosen: chosen slots as in `Allowed`; `living` stands for the items of the version that are not removed.
    excluded: slots that are left out.
    """

    values: dict[str, Any]
    version: str
    kind: int
    chosen: Chosen | Literal["living"] | None
    excluded: list[int]

    @classmethod
    def of(
        cls, request: RankRequest, allowed: Allowed, version: str, kind: int, living: SlotSet | None
    ) -> WireRequest:
        """Encode a request. living: slots of the version's items that are not removed; they are not sent."""
        chosen = allowed.chosen
        return cls(
            values={name: getattr(request, name) for name in _VALUES},
            version=version,
            kind=kind,
            chosen=None if chosen is None else "living" if chosen is living else Chosen.of(chosen),
            excluded=allowed.excluded.tolist(),
        )

    def rank_request(
        self, versions: Mapping[str, Sequence[Allowed]], cancelled: Callable[[], bool]
    ) -> RankRequest:
        """Decode the request. versions: living items of index versions by each kind of identifiers, by name."""
        everything = versions[self.version][self.kind]
        trie = everything.trie
        chosen = self.chosen.slot_set(trie.items) if isinstance(self.chosen, Chosen) else None
        if self.chosen == "living":
            chosen = everything.chosen
        allowed = Allowed(trie, chosen, np.array(self.excluded, np.int64))
        return RankRequest(**self.values, allowed=allowed, cancelled=cancelled)


class RankCommand(_Message):
    """Rank requests, under numbers that differ from all in flight; each is answered in some `Outcomes`."""

    kind: Literal["rank"] = "rank"
    requests: dict[int, WireRequest]


class OpenCommand(_Message):
    """Open a version of the index; answered by `Done` or `Failure`."""

    kind: Literal["open"] = "open"
    version: str


class ForgetCommand(_Message):
    """Drop what is kept of earlier prompts; answered by `Done` or `Failure`."""

    kind: Literal["forget"] = "forget"


class Outcomes(_Message):
    """Rankings, and reasons why there is none, by the numbers of the requests."""

    kind: Literal["outcomes"] = "outcomes"
    rankings: dict[int, Ranking]
    failures: dict[int, str]


class Done(_Message):
    kind: Literal["done"] = "done"


class Failure(_Message):
    """The message of an `EngineError` or `BundleError`."""

    kind: Literal["failure"] = "failure"
    reason: str


Command = RankCommand | OpenCommand | ForgetCommand
Reply = Outcomes | Done | Failure
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])
_REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])


def encode(message: Command | Reply) -> bytes:
    return message.model_dump_json().encode()


def decode_command(data: bytes) -> Command:
    return _COMMAND.validate_json(data)


def decode_reply(data: bytes) -> Reply:
    return _REPLY.validate_json(data)
