"""The parts of a bulk ranking on disk: what is done is safe, and a killed run goes on after it.

While `F.parquet` is made, the folder `F.parquet.parts` lies next to it:

    plan.json               what is ranked, with what (see `Plan`)
    000000000-000000512.parquet    answers to the requests from the first number up to the second
    lock                    held by the process that works on it

A part is written as a whole. In the end all are joined to `F.parquet`, which appears as a whole, too; its metadata
hold the plan. Then the folder is removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from index.files import atomic_folder
from index.records import parse_json
from training.bulk.entry import BulkError
from training.bulk.plan import Plan
from training.bulk.table import Tally, schema_of
from training.outputs import OutputError, check_output, write_output
from training.run.locks import claim

PLAN = "plan.json"
LOCK = "lock"
ROWS = 1 << 17  # of a row group of the joined file
COMPRESSION = "zstd"


def parts_folder(out: Path) -> Path:
    """Return the folder of the parts of an output."""
    return out.with_name(f"{out.name}.parts")


def check_place(out: Path, resume: bool) -> None:
    """Raise `BulkError` or `OutputError` if a ranking must not begin at `out`. Call it before anything slow."""
    folder = parts_folder(out)
    check_output(folder, folder=True)
    if not folder.exists():
        return
    if not (folder / PLAN).is_file():
        raise BulkError(f"{folder} is in the way, and no folder of ours; remove it, or choose another --out")
    if not resume and not _is_output_of(out, Plan.read(folder / PLAN)):
        raise BulkError(
            f"{folder} holds a ranking that was not finished; go on with --resume, or remove it to begin anew"
        )


def is_complete(out: Path, plan: Plan) -> bool:
    """Whether `out` is the whole output of a plan. Removes parts that a kill at the very end has left."""
    folder = parts_folder(out)
    if folder.exists() and _is_output_of(out, Plan.read(folder / PLAN)):
        with _held(folder):
            _remove(folder)
    return not folder.exists() and _is_output_of(out, plan)


class Parts:
    """The parts of one plan. Made by `opened`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._schema = schema_of(str(plan.source["column"]))
        self._tallies: dict[tuple[int, int], Tally] = {}
        for path in sorted(folder.glob(".*.draft")):  # of a part that was being written
            path.unlink()
        for path in sorted(folder.glob("*.parquet")):
            start, _, stop = path.stem.partition("-")
            try:
                metadata = pq.read_schema(path).metadata
                self._tallies[int(start), int(stop)] = Tally(**parse_json(metadata[b"gems.tally"].decode()))
            except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
                path.unlink()  # the disk lost it: it is ranked again

    @classmethod
    @contextmanager
    def opened(cls, out: Path, plan: Plan) -> Iterator[Parts]:
        """Give the parts of a plan, those of an earlier run too, to this process alone.

        Raises `BulkError` if another process works on them, or they are those of another plan.
        """
        folder = parts_folder(out)
        if not folder.exists():
            try:
                with atomic_folder(folder) as draft:
                    (draft / PLAN).write_text(plan.to_json(), "utf-8")
            except OSError as error:
                raise OutputError(
                    f"{folder} cannot be written: {error.strerror or error}; choose another --out"
                ) from error
        with _held(folder):
            differ = Plan.read(folder / PLAN).differences(plan)
            if differ is not None:
                raise BulkError(
                    f"{folder} was begun with {differ}; go on with the same, or remove it to begin anew"
                )
            yield cls(folder, plan)

    @property
    def tally(self) -> Tally:
        """Counts over all parts."""
        return sum(self._tallies.values(), Tally())

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges of requests that no part holds, in order."""
        gaps, place = [], 0
        for start, stop in [*sorted(self._tallies), (int(self._plan.source["requests"]), 0)]:
            if start > place:
                gaps.append((place, start))
            place = stop
        return gaps

    def write(self, start: int, stop: int, table: pa.Table, tally: Tally) -> None:
        """Keep the answers to the requests from `start` up to `stop`. Raises `OutputError`; nothing is lost then."""
        told = table.replace_schema_metadata({"gems.tally": tally.to_json()})
        path = self._path(start, stop)
        write_output(path, lambda draft: pq.write_table(told, draft, compression=COMPRESSION))
        self._tallies[start, stop] = tally

    def join(self, out: Path) -> None:
        """Write all parts to `out` in the order of the requests, and remove them. Raises `OutputError`."""
        write_output(out, self._write_joined)
        _remove(self._folder)

    def _write_joined(self, draft: Path) -> None:
        metadata = {
            "gems.bundle_id": str(self._plan.bundle["bundle_id"]),
            "gems.index_version": str(self._plan.bundle["index_version"]),
            "gems.plan": self._plan.to_json(),
        }
        with pq.ParquetWriter(draft, self._schema.with_metadata(metadata), compression=COMPRESSION) as writer:
            waiting: list[pa.Table] = []
            rows = 0
            for part in sorted(self._tallies):
                waiting.append(pq.read_table(self._path(*part)).replace_schema_metadata(metadata))
                rows += waiting[-1].num_rows
                while rows >= ROWS:  # where parts begin leaves no trace
                    together = pa.concat_tables(waiting)
                    writer.write_table(together.slice(0, ROWS).combine_chunks(), row_group_size=ROWS)
                    waiting = [together.slice(ROWS)]
                    rows -= ROWS
            if rows:
                writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=ROWS)

    def _path(self, start: int, stop: int) -> Path:
        return self._folder / f"{start:09d}-{stop:09d}.parquet"


def _is_output_of(out: Path, plan: Plan) -> bool:
    try:
        metadata: dict[bytes, Any] = pq.read_schema(out).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return metadata.get(b"gems.plan") == plan.to_json().encode()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    with claim(folder / LOCK) as ours:
        if not ours:
            raise BulkError(f"another process works on {folder}; wait for it, or choose another --out")
        yield


def _remove(folder: Path) -> None:
    """Remove a folder of parts, the plan last: what a kill leaves is still known as ours."""
    for path in sorted(folder.iterdir()):
        if path.name != PLAN:
            with suppress(FileNotFoundError):
                path.unlink()
    shutil.rmtree(folder)
