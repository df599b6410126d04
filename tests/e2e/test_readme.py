"""The README and the guide, followed to the letter on a small shop's own files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from support.paths import ROOT

from index.bundle.bundle import Bundle
from index.sequence.events import Task
from training.baselines.settings import (
    DenseSettings,
    DreamRecSettings,
    NCFSettings,
    SASRecSettings,
    UnifiedSSRSettings,
)
from training.cli.main import main
from training.config import RECIPES, TrainConfig
from training.evaluation.case_ranks import CaseRanks
from training.run.server_process import ServerProcess
from training.sweep.spec import SweepSpec

README = (ROOT / "README.md").read_text("utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
JSON_EXAMPLES = re.findall(r"```json\n(.*?)```", README, re.S)


def lines(start: str) -> list[str]:
    """Commands of the README's shell blocks that begin with `start`."""
    found = [line for block in BLOCKS for line in block.splitlines() if line.startswith(start)]
    assert found, f"the README shows no command that starts with {start!r}"
    return found


def shell(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two files that the README describes, its own example rows among them."""
    folder = tmp_path_factory.mktemp("shop")
    item, interaction = (json.loads(example) for example in JSON_EXAMPLES)
    sports, things = ("Trail", "Road", "Track", "Indoor"), ("shoes", "shirt", "socks", "bottle", "watch")
    items = [item] + [
        {"item_id": f"{s}-{t}", "title": f"{s} {t}", "categories": ["Sports", t], "price": k}
        for k, (s, t) in enumerate((s, t) for s in sports for t in things)
    ]
    rng = np.random.default_rng(0)
    rows = [interaction]
    for user in range(60):
        sport = sports[int(rng.integers(4))]
        for k, t in enumerate(rng.permutation(things)):
            row = {
                "user_id": f"p{user}",
                "item_id": f"{sport}-{t}",
                "timestamp": k,
                "behaviour": "recommendation",
            }
            if rng.random() < 0.5:
                row |= {"behaviour": "search", "query": f"{sport} {t}".lower()}
            rows.append(row)
    for name, records in (("items", items), ("interactions", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(shop: Path) -> Path:
    for command in lines("gems data import") + lines("gems data describe") + lines("gems train"):
        shell(command, shop)
    return shop / "runs" / "mine" / "bundle"


def test_the_evaluation_is_printed_and_written(shop: Path, trained: Path) -> None:
    (command,) = lines("gems evaluate")
    assert "full catalogue" in shell(command, shop)
    result = json.loads((shop / "runs" / "mine" / "evaluation.json").read_text())
    for task in ("search", "recommendation"):
        assert {"hit@10", "ndcg@10", "mrr@10"} <= result[task].keys()
        assert "hit@10" in result["floors"]["popularity"][task]
    assert result["search"]["hit@5"] > 0.5  # twenty-one items: the query names the right one


def test_the_report_is_one_page(shop: Path, trained: Path) -> None:
    (command,) = lines("gems report")
    shell(command, shop)
    page = (shop / "runs" / "mine" / "report.html").read_text("utf-8")
    assert "recommendation" in page
    assert "<svg" in page


def test_everybody_is_ranked_for_at_once(shop: Path, trained: Path) -> None:
    (shop / "top-queries.txt").write_text("running shoes\ntrail socks\n")
    mails, cache, again = lines("gems rank")
    assert "for 61 requests" in shell(mails, shop)
    frame = pl.read_parquet(shop / "runs" / "mine" / "mails.parquet")
    assert frame["user_id"].n_unique() == 61
    assert "for 2 requests" in shell(cache, shop)
    assert pl.read_parquet(shop / "runs" / "mine" / "cache.parquet")["query"].unique(
        maintain_order=True
    ).to_list() == [
        "running shoes",
        "trail socks",
    ]
    assert "is complete already" in shell(again, shop)


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[ServerProcess]:
    (command,) = lines("gems serve")
    assert command.split()[1:3] == ["serve", "runs/mine/bundle"]  # the same bundle, on a free port
    with ServerProcess(trained) as running:
        yield running


def test_the_curl_lines_are_answered(server: ServerProcess, shop: Path) -> None:
    answers = [shell(line.replace("localhost:8000", server.url[7:]), shop) for line in lines("curl")]
    search, recommend = (json.loads(answer) for answer in answers[:2])
    assert [item["rank"] for item in search["items"]] == [1, 2, 3, 4, 5]
    assert any("shoes" in item["title"] for item in search["items"])
    assert len(recommend["items"]) == 5
    assert recommend["dropped"]["unknown_count"] == 0
    assert "gems_requests_total" in answers[2]


def test_the_catalogue_changes_without_training(shop: Path, trained: Path) -> None:
    new = {"item_id": "Trail-tent", "title": "Trail tent", "categories": ["Sports", "tent"]}
    changed = {"item_id": "Road-socks", "title": "Warm road socks", "categories": ["Sports", "socks"]}
    (shop / "new-items.jsonl").write_text(f"{json.dumps(new)}\n{json.dumps(changed)}\n")
    (shop / "gone.txt").write_text("Indoor-watch\n")
    printed = [shell(command, shop) for command in lines("gems index") + lines("gems bundle")]
    assert "at v2: 1 items added, 1 changed, 1 removed" in printed[0]
    assert "v2" in printed[1].splitlines()[1]
    assert "current" in printed[1].splitlines()[1]
    assert "22 items, 1 of them removed; 0 share their identifier" in printed[2]
    assert "at v1" in printed[3]
    assert "is whole" in printed[4]
    assert Bundle.open(trained).index.version == "v1"


def test_the_other_commands_work(shop: Path) -> None:
    assert "smollm2-135m" in shell("gems assets list", shop)
    (command,) = lines("gems data movielens")
    shell(command, shop)
    assert (shop / "data" / "movielens" / "data.json").exists()
    for target in re.findall(r"make (\w+)", README):
        shell(f"make -n {target}", ROOT)


def test_a_served_bundle_needs_nothing_of_the_training_side(trained: Path) -> None:
    script = (
        "import sys; from index.bundle.bundle import Bundle; "
        "from server.engine.torch_backend.engine import TorchEngine; "
        "import server.app; TorchEngine.open(Bundle.open(sys.argv[1])); "
        "sys.exit(any(m.split('.')[0] in ('training', 'gems') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script, str(trained)], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data import --items nowhere.jsonl --interactions interactions.jsonl --out data/x", "nowhere.jsonl"),
        ("train --data nowhere --out runs/x", "nowhere"),
        ("train --data data/mine --out runs/x --optimiser.epochs -3", "optimiser.epochs"),
        ("train --data data/mine --out runs/x --recipe nothing", "Recipes"),
        ("train --data data/mine --out runs/x --backbone.name ./no-such-folder", "no-such-folder"),
        (
            "train --data data/mine --out runs/x --backbone.name scratch --backbone.hidden 30 --backbone.heads 4",
            "multiple",
        ),
        (
            "train --data data/mine --out runs/x --backbone.name smollm2-135m --sequence.max-tokens 10000",
            "context",
        ),
        (
            "train --data data/mine --out runs/x --sequence.max-tokens 384 --backbone.name runs/mine/bundle",
            "already knows",
        ),
        ("evaluate nowhere --data data/mine", "nowhere"),
        ("evaluate runs/mine/bundle --data data/mine --split training", "validation"),
        ("assets fetch nothing", "nothing"),
        ("train --data data/mine --out runs/x --recipe small --gems.rank 0", "greater than or equal to 1"),
        ("train --data data/mine --out runs/x --learning-rate 1", "is now --optimiser.learning-rate"),
        ("baseline sasrec --data data/mine --out runs/x --heads 3", "divide"),
        ("baseline sasrec --data data/mine --out runs/x --items alphafuse", "too few"),
        ("baseline ncf --data nowhere --out runs/x", "nowhere"),
        ("compare nowhere", "nowhere"),
        ("report nowhere", "nowhere"),
        ("rank nowhere --data data/mine --all --out runs/x", "nowhere"),
        ("preservation nowhere --data data/mine", "nowhere"),
        ("sweep nowhere.yaml --data data/mine --out runs/x", "nowhere"),
    ],
)
def test_mistakes_get_one_clear_message(
    shop: Path,
    trained: Path,
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(shop)
    monkeypatch.setattr(sys, "argv", ["gems", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (shop / "runs" / "x").exists()
    assert not (shop / "data" / "x").exists()


def settings_of(model: type[BaseModel], group: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of a model by its dotted name."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(inner, f"{name}.")
        else:
            yield f"{group}{name}", field


@pytest.mark.parametrize(
    ("settings", "guide"),
    [
        (TrainConfig, "training.md"),
        (SASRecSettings, "baselines.md"),
        (NCFSettings, "baselines.md"),
        (DenseSettings, "baselines.md"),
        (UnifiedSSRSettings, "baselines.md"),
        (DreamRecSettings, "baselines.md"),
    ],
)
def test_every_setting_is_documented_with_its_default(settings: type[BaseModel], guide: str) -> None:
    text = (ROOT / "docs" / guide).read_text("utf-8")
    for name, field in settings_of(settings):
        default = field.default
        shown = (
            "none"
            if default is None
            else ",".join(map(str, default))
            if isinstance(default, tuple)
            else default
        )
        assert f"| `{name}` | {shown} | {field.description} |" in text


def test_the_commands_of_the_guide_to_baselines_work(
    shop: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (ROOT / "docs" / "baselines.md").read_text("utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", guide, re.S)
    small = {
        "sasrec": "--items id --epochs 2", "ncf": "--epochs 2", "dense": "--rounds 1 --steps 2",
        "unified-ssr": "--epochs 2", "dreamrec": "--epochs 2 --steps 2",
    }  # fmt: skip
    # In this process: loading torch anew for each command takes longer than the command.
    monkeypatch.chdir(shop)
    for command in block.splitlines():
        words = command.split()
        monkeypatch.setattr(sys, "argv", [*words, *small.get(words[2], "").split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, f"{command}\n{capsys.readouterr()}"
    table = capsys.readouterr().out
    for system in (
        "model",
        "sasrec, id",
        "ncf",
        "dense",
        "unified-ssr",
        "dreamrec, id",
        "popularity",
        "bm25",
    ):
        assert f"| {system} |" in table
    figures = json.loads((shop / "runs" / "comparison.json").read_text())
    ours = CaseRanks.load(shop / "runs" / "mine" / "ranks.npz")
    floors = {"bm25", "popularity_in_query", "popularity_in_same_query"}
    beside = {
        "recommendation": {
            "sasrec, id",
            "ncf",
            "dreamrec, id",
            "unified-ssr",
            "transitions",
            "co_occurrence",
        },
        "search": {"dense", "unified-ssr", *floors},
    }
    for task, names in beside.items():
        everyone = figures[task]["all users"]
        assert everyone["cases"] == len(ours.tasks[Task(task)].users)  # all systems ranked all of them
        assert {"model", "popularity"} | names == set(everyone["systems"])
        for name, system in everyone["systems"].items():
            paired = system.get("differences", {}).get("hit@10")
            assert (paired is None) == (name == "model")  # all are compared with the generative model
            if paired is not None:
                apart = system["hit@10"] - everyone["systems"]["model"]["hit@10"]
                assert paired[0] == pytest.approx(apart)
                assert paired[1] <= paired[0] <= paired[2]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_can_be_read(recipe: Path) -> None:
    TrainConfig.load(None, {}, recipe.stem)
    assert f"`{recipe.stem}`" in TRAINING


@pytest.mark.parametrize("spec", sorted((ROOT / "bench" / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_sweep_can_be_read(spec: Path) -> None:
    SweepSpec.load(spec)
