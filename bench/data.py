"""`python -m bench.data --interactions 10000000 --items 1000000 --json F`: how fast a large log becomes a data set.

A log is drawn (a third of it searches) and written as Parquet and as JSON Lines. Each step runs in a process of its
own: *import* (`gems data import`), *scan* (polars reads every column of the same files and does nothing with them: the
floor), *start* (the data set is opened, split, and its first batch of training sequences is drawn).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.console import Console

from training.cli.common.command import run_command
from training.cli.common.paths import JsonFile
from training.outputs import write_json

EVENTS_OF_A_PERSON = 10
QUERIES = 50_000
PIECE = 1_000_000
FORMATS = ("parquet", "jsonl")
# The last line tells the wall time and the peak memory of the process.
REPORT = """
took = time.perf_counter() - begin
import json, re
peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([took, time.process_time(), peak]))
"""
IMPORT = """
import sys, time
from pathlib import Path
from training.data.importing.importer import import_files
items, interactions, out = map(Path, sys.argv[1:])
begin = time.perf_counter()
import_files(items, interactions, "bench")[0].save(out, force=True)
"""
SCAN = """
import sys, time
import polars as pl
begin = time.perf_counter()
for path in sys.argv[1:3]:
    scan = pl.scan_parquet if path.endswith("parquet") else pl.scan_ndjson
    for batch in scan(path).collect_batches():
        len(batch)
"""
START = """
import sys, time
import numpy as np
from index.sequence.encoder import SequenceEncoder
from index.sequence.vocabulary import IdentifierVocabulary
from training.config.extra_task import ExtraTask
from training.data.dataset import DataSet
from training.data.splits import leave_one_out
from training.loop.batches import BatchSource
from training.loop.extra_tasks import ExtraTasks
from training.model.backbones import train_tokenizer
begin = time.perf_counter()
dataset = DataSet.load(sys.argv[1])
split = leave_one_out(dataset)
tokenizer = train_tokenizer([item.title for item in dataset.catalogue[:1000]], 2000)
vocabulary = IdentifierVocabulary(len(tokenizer), (256, 256, 256))
codes = np.random.default_rng(0).integers(0, 256, (len(dataset.catalogue), 3))
encoder = SequenceEncoder(tokenizer, vocabulary, codes, max_tokens=384, max_events=20)
tasks = [ExtraTask(read="title", write="identifier", share=0.1)]
extra = ExtraTasks(tasks, dataset.catalogue, encoder)
batches = BatchSource(encoder, split.train, batch_size=128, part_tokens=8192, extra=extra)
next(batches.epoch(0))
"""


def draw_files(folder: Path, interactions: int, items: int, formats: Sequence[str] = FORMATS) -> None:
    """Write both files in the formats. The items have a price and a brand, as attributes."""
    rng = np.random.default_rng(0)
    words = pl.Series([f"word{k}" for k in range(5000)])
    parts = [words.gather(rng.integers(0, len(words), items)) for _ in range(4)]
    frame = pl.DataFrame(
        {
            "item_id": [f"item{k}" for k in range(items)],
            "title": pl.select(pl.concat_str(*parts, separator=" ")).to_series(),
            "categories": (parts[0] + " > " + parts[1]).reshape((items, 1)).arr.to_list(),
            "price": rng.integers(100, 99_999, items) / 100,
            "brand": parts[3],
        }
    )
    frame.write_parquet(folder / "items.parquet")
    if "jsonl" in formats:
        frame.write_ndjson(folder / "items.jsonl")
    ids = frame["item_id"]
    people = max(1, interactions // EVENTS_OF_A_PERSON)
    users = pl.Series([f"user{k}" for k in range(people)])
    queries = pl.Series(
        [
            f"{a} {b}"
            for a, b in zip(*(words.gather(rng.integers(0, 5000, QUERIES)) for _ in "ab"), strict=True)
        ]
    )
    with (folder / "interactions.jsonl").open("wb") as lines:
        parts = []
        for start in range(0, interactions, PIECE):
            count = min(PIECE, interactions - start)
            search = pl.Series(rng.random(count) < 1 / 3)
            query = queries.gather(rng.integers(0, QUERIES, count))
            piece = pl.DataFrame(
                {
                    "user_id": users.gather(rng.integers(0, people, count)),
                    "item_id": ids.gather((items * rng.random(count) ** 2).astype(int)),
                    "timestamp": 1_700_000_000 + np.arange(start, start + count),
                    "behaviour": pl.select(
                        pl.when(search).then(pl.lit("search")).otherwise(pl.lit("recommendation"))
                    ).to_series(),
                    "query": pl.select(pl.when(search).then(query)).to_series(),
                }
            )
            if "jsonl" in formats:
                piece.write_ndjson(lines)
            piece.write_parquet(folder / f"part-{start:012d}.parquet")
    pl.scan_parquet(folder / "part-*.parquet").sink_parquet(folder / "interactions.parquet")
    for part in folder.glob("part-*.parquet"):
        part.unlink()


def measured(code: str, *paths: Path) -> dict[str, float]:
    """Run Python code with paths in a process of its own. Return its seconds and its peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT, *map(str, paths)], capture_output=True, text=True, check=True
    )
    seconds, cpu, memory = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(memory / 1e6)}


def main(
    interactions: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="rows of the log")] = 1_000_000,
    items: Annotated[int, typer.Option(min=1, max=50_000_000, help="items of the catalogue")] = 100_000,
    json_file: JsonFile = None,
) -> None:
    console = Console()
    figures: dict[str, Any] = {"interactions": interactions, "items": items, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_files(folder, interactions, items)
        for kind in FORMATS:
            files = [folder / f"{part}.{kind}" for part in ("items", "interactions")]
            scan = measured(SCAN, *files)
            found = measured(IMPORT, *files, folder / "data")
            figures[kind] = {
                "megabytes": round(sum(path.stat().st_size for path in files) / 1e6),
                "scan": scan,
                "import": found,
                "interactions_a_second": round(interactions / found["seconds"]),
                "times_the_scan": round(found["seconds"] / scan["seconds"], 2),
            }
            console.print(kind, figures[kind])
        figures["start"] = measured(START, folder / "data")
        console.print("start", figures["start"])
    if json_file:
        write_json(json_file, figures)


if __name__ == "__main__":
    run_command(main, "bench.data")
