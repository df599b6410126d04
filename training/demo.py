"""`gems demo`: the main job end to end, from an empty folder to a server that has answered both endpoints."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Item
from index.records import read_json
from index.sequence.events import Event, Task
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import new_item_vectors
from training.data.schema import is_data_set
from training.data.sources.movielens import movielens
from training.data.splits import leave_one_out
from training.errors import UserError
from training.evaluation.evaluate import evaluate, save_evaluation
from training.evaluation.table import print_evaluation
from training.outputs import write_json
from training.pipeline import train
from training.run.server_process import ServerProcess

QUERIES = ("cinema paradiso", "comedy 1980s")  # words of a title; a genre and a decade
NEW_FILM = Item(
    "the-wild-robot",
    "The Wild Robot",
    categories=("Animation", "Children", "Sci-Fi"),
    attributes={"year": 2024, "decade": "2020s"},
)


def demo(out: Path, *, started: float, serve: bool, port: int, console: Console) -> None:
    """Run data → training → bundle → evaluation → server and its answers, and write `out/summary.json`.

    started: Unix time at which the command began, so that `seconds.total` includes the set-up.
    serve: leave the server running until Ctrl-C.
    port: port of the server that is left running.
    Raises `UserError` if `out` holds other files, or if the port is taken.
    """
    if out.exists() and any(out.iterdir()) and not is_data_set(out / "data"):
        raise UserError(f"{out} is not empty and no demo of ours; choose another --out")
    if serve:
        _check_port(port)
    shutil.rmtree(out / "run", ignore_errors=True)
    (out / "summary.json").unlink(missing_ok=True)
    console.rule("1. Data: MovieLens, with simulated searches")
    with console.status("fetching and reading MovieLens"):
        dataset = movielens()
        dataset.save(out / "data", force=True)
    counts = dataset.info.counts
    console.print(f"{counts['users']} people, {counts['items']} films, {counts['interactions']} interactions")
    console.rule("2. Training")
    begin = time.time()
    bundle = train(out / "data", out / "run", TrainConfig.load(None, {}, "demo"), console=console)
    assert bundle is not None  # the recipe's method leaves plain weights
    training = read_json(bundle / "bundle.json")["training"]["seconds"]
    prepared = time.time() - begin - training
    console.rule("3. Evaluation, through the engine that serves")
    begin = time.time()
    evaluation = evaluate(bundle, out / "data", exclude_history=True, console=console)
    print_evaluation(evaluation, console)
    save_evaluation(evaluation, out / "evaluation.json")
    evaluated = time.time() - begin
    console.rule("4. Serving")
    with ServerProcess(bundle, port if serve else 0, admin_key=secrets.token_hex()) as server:
        body = example(dataset)
        answers = {"recommend": server.post("/recommend", body)}
        _print_answer("/recommend", answers["recommend"], console)
        for query in QUERIES:
            answers[query] = server.post("/search", body | {"query": query})
            _print_answer(f"/search  “{query}”", answers[query], console)
        console.print(f"now {NEW_FILM.title!r} is added, without training")
        update_index(opened := Bundle.open(bundle), [NEW_FILM], [], new_item_vectors(opened.info, [NEW_FILM]))
        server.post("/admin/index/refresh", {})
        answers[NEW_FILM.title] = server.post("/search", body | {"query": NEW_FILM.title.lower()})
        _print_answer(f"/search  “{NEW_FILM.title.lower()}”", answers[NEW_FILM.title], console)
        total = time.time() - started
        summary = {
            "seconds": {
                "total": total,
                "training": training,
                "preparation": prepared,
                "evaluation": evaluated,
            },
            "search_match_share": evaluation["search_match_share"],
            "evaluation": evaluation,
            "answers": answers,
        }
        write_json(out / "summary.json", summary)
        console.print(f"{total:.0f} s in all, {training:.0f} s of them training; {out / 'summary.json'}")
        if serve:
            console.rule("The server runs; try")
            for path, request in (("search", body | {"query": QUERIES[0]}), ("recommend", body)):
                quoted = shlex.quote(json.dumps(request))
                console.print(
                    f"curl -s {server.url}/{path} -H 'Content-Type: application/json' -d {quoted}",
                    soft_wrap=True, highlight=False, markup=False,
                )  # fmt: skip
            console.print(
                f"{server.url}/docs describes the API, {server.url}/metrics the state. Ctrl-C ends."
            )
            try:
                server.process.wait()
            except KeyboardInterrupt:
                console.print("stopping")


def example(dataset: DataSet) -> dict[str, Any]:
    """Return a request body with the last five events of the first test user."""
    case = leave_one_out(dataset).test[0]
    return {"history": [_entry(dataset, event) for event in case.history[-5:]], "limit": 5}


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken; end what listens there, or choose another --port")


def _entry(dataset: DataSet, event: Event) -> dict[str, str]:
    entry = {"item_id": dataset.catalogue[event.item].item_id, "behaviour": event.behaviour.value}
    if event.behaviour is Task.SEARCH and event.query:
        entry["query"] = event.query
    return entry


def _print_answer(title: str, answer: dict[str, Any], console: Console) -> None:
    table = Table(title=title)
    table.add_column("rank", justify="right")
    table.add_column("item")
    table.add_column("relevance", justify="right")
    table.add_column("source")
    for item in answer["items"]:
        table.add_row(
            str(item["rank"]),
            escape(f"{item['title']} [{item['item_id']}]"),
            f"{item['relevance']:.1%}",
            item["source"],
        )
    console.print(table)
