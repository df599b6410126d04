"""`python -m bench.rank_equality BUNDLE --data DIR --json F`: `gems rank` gives a server's answers, and survives kills.

- `--people N`: a server is asked for N people, spread over the data set, one after the other; `gems rank` ranks them in
  one file. Items and scores are compared.
- `--kills K`: `gems rank` is killed (SIGKILL) K times at random moments, and begun again with `--resume`. The
  file is compared, byte by byte, with that of a run without kills.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console

from training.bulk.parts import parts_folder
from training.cli.common.command import run_command
from training.cli.common.paths import BundlePath, JsonFile
from training.cli.common.quiet import quiet_libraries
from training.data.dataset import DataSet
from training.outputs import write_json
from training.run.server_process import ServerProcess
from training.settings import MOST

LIMIT = 10
LONGEST_LIFE = 2.0  # seconds between the first part of a run and its end


def command(bundle: Path, data: Path, users: Path, out: Path, *more: str) -> list[str]:
    """Return the command line that ranks for the people of a file."""
    options = {"--data": data, "--users": users, "--out": out, "--limit": LIMIT, "--threads": 1}
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-m", "training.cli.main", "rank", str(bundle), *words, *more]


def against_server(bundle: Path, data: Path, dataset: DataSet, folder: Path, people: int) -> dict[str, Any]:
    """Compare the answers for people who are spread over the data set."""
    places = range(0, len(dataset.users), max(1, len(dataset.users) // people))[:people]
    users, out = folder / "users.txt", folder / "answers.parquet"
    users.write_text("".join(f"{dataset.users.user_id(place)}\n" for place in places), "utf-8")
    subprocess.run(command(bundle, data, users, out), check=True, capture_output=True)
    found = pl.read_parquet(out).partition_by("user_id", as_dict=True)
    ids = dataset.catalogue.item_ids
    same, largest = 0, 0.0
    with ServerProcess(bundle) as server:
        for place in places:
            history = [
                {"item_id": ids[event.item], "behaviour": event.behaviour.value, "query": event.query}
                for event in dataset.users.events(place)
            ]
            answer = server.post("/v1/recommend", {"history": history, "limit": LIMIT})["items"]
            ours = found[(dataset.users.user_id(place),)]
            if ours["item_id"].to_list() == [item["item_id"] for item in answer]:
                same += 1
                scores = zip(ours["score"].to_list(), (item["score"] for item in answer), strict=True)
                largest = max(largest, *(abs(one - other) for one, other in scores))
    return {"people": len(places), "same_lists": same, "largest_difference_of_scores": largest}


def killed(
    bundle: Path, data: Path, dataset: DataSet, folder: Path, people: int, kills: int
) -> dict[str, Any]:
    """Kill a ranking again and again, and compare its file with that of a run without kills."""
    rng = random.Random(0)
    users = folder / "many.txt"
    users.write_text(
        "".join(f"{user_id}\n" for user_id in dataset.users.user_ids.to_pylist()[:people]), "utf-8"
    )
    whole, out = folder / "whole.parquet", folder / "killed.parquet"
    options = ("--batch-size", "16", "--save-seconds", "0.05")
    subprocess.run(command(bundle, data, users, whole, *options), check=True, capture_output=True)
    done = 0
    for _ in range(kills):
        before = _parts(out)
        resume = ("--resume",) if parts_folder(out).exists() else ()
        ranking = subprocess.Popen(
            command(bundle, data, users, out, *options, *resume),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while ranking.poll() is None and _parts(out) == before:  # until it works
            time.sleep(0.01)
        time.sleep(rng.random() * LONGEST_LIFE / kills)
        if ranking.poll() is not None:
            break
        ranking.send_signal(signal.SIGKILL)
        ranking.wait()
        done += 1
    subprocess.run(command(bundle, data, users, out, *options, "--resume"), check=True, capture_output=True)
    return {"people": people, "kills": done, "same_bytes": out.read_bytes() == whole.read_bytes()}


def _parts(out: Path) -> int:
    return len(list(parts_folder(out).glob("*.parquet")))


def main(
    bundle: BundlePath,
    data: Annotated[Path, typer.Option(help="folder of a data set, whose people are ranked for")],
    people: Annotated[int, typer.Option(min=1, max=MOST, help="asked of a server")] = 600,
    kills: Annotated[int, typer.Option(min=0, max=1000, help="of a ranking")] = 20,
    many: Annotated[int, typer.Option(min=1, max=MOST, help="people of the ranking that is killed")] = 2000,
    json_file: JsonFile = None,
) -> None:
    """Compare `gems rank` with a server, and a killed ranking with a whole one."""
    quiet_libraries()
    dataset = DataSet.load(data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            "server": against_server(bundle, data, dataset, folder, people),
            "kills": killed(bundle, data, dataset, folder, min(many, len(dataset.users)), kills),
        }
    Console().print(figures)
    if json_file:
        write_json(json_file, figures)


if __name__ == "__main__":
    run_command(main, "bench.rank_equality")
