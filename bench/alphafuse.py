"""`python -m bench.alphafuse --beauty DIR --movielens DIR --out DIR`: figures of AlphaFuse and its peers.

Trains every baseline on Amazon Beauty and MovieLens with every seed, one after the other, ranks the full catalogue, and
writes OUT/alphafuse.json, OUT/alphafuse.md and the charts OUT/*.svg. Finished runs are kept, stopped runs continue.
`--tables` trains nothing and writes the tables of finished runs; `--only beauty/null,…` trains some parts only.

    main       leave-one-out: four SASRec variants, NCF, the dense bi-encoder (tuned and untuned)
    cold       users split 8:1:1 in the order of time (MovieLens only: Beauty has no real time stamps)
    threshold  AlphaFuse with several thresholds of the relative singular value, and a fixed width of the model
    null       AlphaFuse with a row space of 64 dimensions and null spaces of several sizes
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from numpy.typing import NDArray
from rich.console import Console

from index.identifiers.alphafuse import SemanticSpace, random_cosines
from index.sequence.events import Task
from training.baselines.language import language_vectors
from training.baselines.run import EVALUATION, run_baseline
from training.baselines.settings import (
    BaselineSettings,
    DenseSettings,
    NCFSettings,
    SASRecSettings,
)
from training.cli.common.command import run_command
from training.cli.common.numbers import whole_numbers
from training.cli.common.paths import output_folder
from training.cli.common.quiet import quiet_libraries
from training.data.dataset import DataSet
from training.data.vectors import read_vectors, save_vectors
from training.errors import UserError
from training.evaluation.case_ranks import CaseRanks
from training.evaluation.comparison.compare import compare, floors_of
from training.evaluation.comparison.table import markdown
from training.outputs import write_json, write_text
from training.report.charts import Line, line_chart
from training.report.style import styled
from training.run.locks import claim
from training.settings import MOST_THREADS, SEEDS

ITEMS = ("alphafuse", "id", "language-init", "adapter")  # the others are compared with the first
UNTUNED = "dense-untuned"
ROW_SPACE = 64
PAIRS = 200_000  # pairs of items whose cosines are measured
NULL_SIZES = (16, 32, 128)  # and 64 in the main table
THRESHOLDS = {  # data set → (width of the model, thresholds that leave some dimensions to learn)
    "beauty": (128, (0.05, 0.1, 0.25, 0.5)),
    "movielens": (384, (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5)),
}
COMMON: dict[str, dict[str, Any]] = {
    "beauty": {},
    "movielens": {"exclude_history": True},  # people see a film once
}
SASREC: dict[str, dict[str, Any]] = {
    "beauty": {},
    "movielens": {"batch_size": 16, "patience": 6},  # few but long histories, few and noisy validation cases
}


@dataclass(frozen=True)
class Job:
    """One run.

    data: name of the data set.
    part: see above.
    key: name of the folder, unique within the part.
    """

    data: str
    part: str
    key: str
    settings: BaselineSettings

    @property
    def folder(self) -> Path:
        return Path(self.data) / self.part / self.key / f"seed-{self.settings.seed}"

    def done(self, out: Path) -> bool:
        """Whether the run has a result. Raises `UserError` if the result was made with other settings."""
        if not (out / self.folder / EVALUATION).exists():
            return False
        before = yaml.safe_load((out / self.folder / "config.yaml").read_text("utf-8"))
        now = self.settings.model_dump(mode="json")
        changed = [name for name, value in now.items() if before.get(name) != value]
        if changed:
            raise UserError(f"{out / self.folder} was made with other settings ({', '.join(changed)})")
        return True


def jobs(seeds: Sequence[int], threads: int) -> Iterator[Job]:
    """Yield the runs of the tables with every seed, then the sweeps with the first seed; the small data set first."""
    first = seeds[0]
    for seed in seeds:
        yield from _main_jobs(seed, threads)
    for data, common in COMMON.items():
        yield Job(data, "main", UNTUNED, DenseSettings(rounds=0, seed=first, threads=threads, **common))
    for data in reversed(COMMON):
        for null in NULL_SIZES:
            settings = _sasrec(data, first, threads, items="alphafuse", null=null, hidden=ROW_SPACE + null)
            yield Job(data, "null", str(null), settings)
        hidden, thresholds = THRESHOLDS[data]
        for threshold in thresholds:
            settings = _sasrec(data, first, threads, items="alphafuse", threshold=threshold, hidden=hidden)
            yield Job(data, "threshold", str(threshold), settings)


def _main_jobs(seed: int, threads: int) -> Iterator[Job]:
    for items in ITEMS:
        settings = _sasrec("movielens", seed, threads, items=items, users="chronological")
        yield Job("movielens", "cold", f"sasrec-{items}", settings)
    for data in reversed(COMMON):
        for items in ITEMS:
            yield Job(data, "main", f"sasrec-{items}", _sasrec(data, seed, threads, items=items))
        yield Job(data, "main", "ncf", NCFSettings(seed=seed, threads=threads, **COMMON[data]))
        yield Job(data, "main", "dense", DenseSettings(seed=seed, threads=threads, **COMMON[data]))


def _sasrec(data: str, seed: int, threads: int, **settings: Any) -> SASRecSettings:
    return SASRecSettings(seed=seed, threads=threads, **COMMON[data], **SASREC[data], **settings)


def main(
    beauty: Annotated[Path, typer.Option(help="folder of `gems data amazon-beauty`")],
    movielens: Annotated[Path, typer.Option(help="folder of `gems data movielens`")],
    out: Annotated[Path, typer.Option(help="folder for the runs, tables and charts", callback=output_folder)],
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS)] = 1,
    tables: Annotated[bool, typer.Option("--tables", help="train nothing, write what is done")] = False,
    only: Annotated[str, typer.Option(help="comma-separated DATA/PART, such as beauty/null")] = "",
) -> None:
    plan = list(jobs(whole_numbers(seeds, least=0, most=SEEDS), threads))
    if only:
        plan = _only(plan, set(only.split(",")))
    quiet_libraries()
    console = Console()
    folders = {"beauty": beauty, "movielens": movielens}
    language = {name: _language(folder, out / "language" / f"{name}.parquet", console)
                for name, folder in folders.items()}  # fmt: skip
    for number, job in enumerate(plan, start=1):
        if tables or job.done(out):
            continue
        with claim((out / job.folder).with_suffix(".lock")) as mine:
            if mine:
                console.rule(f"{number} of {len(plan)}: {job.folder}")
                run_baseline(
                    folders[job.data], out / job.folder, job.settings, language=language[job.data], resume=True,
                    system="dense, untuned" if job.key == UNTUNED else None, console=console,
                )  # fmt: skip
                _write(plan, folders, language, out)
    console.print(_write(plan, folders, language, out), markup=False, highlight=False, soft_wrap=True)


def _only(plan: Sequence[Job], parts: set[str]) -> list[Job]:
    """Return the jobs of these parts. Raises `UserError` if a part does not exist."""
    known = {f"{job.data}/{job.part}" for job in plan}
    if unknown := parts - known:
        raise UserError(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return [job for job in plan if any(_belongs(job, name, plan) for name in parts)]


def _language(data: Path, file: Path, console: Console) -> Path:
    """Return the file of the items' language vectors, made once for all runs."""
    if not file.exists():
        catalogue = DataSet.load(data).catalogue
        save_vectors(file, catalogue.item_ids, language_vectors(catalogue, console))
    return file


def _write(plan: Sequence[Job], folders: dict[str, Path], language: dict[str, Path], out: Path) -> str:
    """Write tables and charts of the finished runs; return the tables."""
    done = [job for job in plan if job.done(out)]
    figures: dict[str, Any] = {}
    text: list[str] = []
    for data, folder in folders.items():
        dataset = DataSet.load(folder)
        figures[data] = {}
        for part in ("main", "cold"):
            runs = [CaseRanks.load(out / job.folder) for job in done if (job.data, job.part) == (data, part)]
            if runs:
                floors = _floors(dataset, runs, out / data / part / "floors")
                figures[data][part] = compare([*runs, *floors])
                text += [f"## {data}, {part}", "", markdown(figures[data][part])]
        for part, label in (("null", "size of the null space"), ("threshold", "log10 of the threshold")):
            points = _sweep([job for job in done if _belongs(job, f"{data}/{part}", plan)], out)
            if points:
                figures[data][part] = points
                _chart(out / f"{data}-{part}.svg", f"{data}: AlphaFuse, {label}", points, label)
                text += _sweep_table(data, part, points)
        vectors = read_vectors(language[data], dataset.catalogue.item_ids)
        figures[data]["cosines"] = _cosines(vectors)
        text += _cosine_table(data, figures[data]["cosines"])
    write_json(out / "alphafuse.json", figures)
    write_text(out / "alphafuse.md", "\n".join(text) + "\n")
    return "\n".join(text)


def _floors(dataset: DataSet, runs: Sequence[CaseRanks], folder: Path) -> list[CaseRanks]:
    """Return the ranks of the floors for each task; they are ranked once and saved in `folder`."""
    found = []
    for task in Task:
        mine = [run for run in runs if task in run.tasks]
        files = folder / task.value
        if mine and not files.exists():
            for floor in floors_of(dataset, mine):
                floor.save(files / f"{floor.system}.npz")
        found += [CaseRanks.load(file) for file in sorted(files.glob("*.npz"))]
    return found


def _belongs(job: Job, part: str, plan: Sequence[Job]) -> bool:
    """Whether a job belongs to DATA/PART. AlphaFuse's main run with the first seed also belongs to the part `null`."""
    main = job.part == "main" and job.key == "sasrec-alphafuse" and job.settings.seed == plan[0].settings.seed
    return part == f"{job.data}/{job.part}" or (part == f"{job.data}/null" and main)


def _sweep(done: Sequence[Job], out: Path) -> list[dict[str, float]]:
    """Return the points of a chart; empty if there is only one."""
    points = []
    for job in done:
        result = json.loads((out / job.folder / EVALUATION).read_text("utf-8"))
        training = result["training"]
        value = float(job.key) if job.part == "threshold" else float(training["null"])
        points.append(
            {
                "value": value,
                "x": math.log10(value) if job.part == "threshold" else value,
                "semantic": training["semantic"],
                "null": training["null"],
                "test": result["recommendation"]["ndcg@10"],
                "validation": training["validation_ndcg@10"],
            }
        )
    return sorted(points, key=lambda point: point["value"]) if len(points) > 1 else []


def _sweep_table(data: str, part: str, points: Sequence[dict[str, float]]) -> list[str]:
    head = f"| {part} | row space | null space | test NDCG@10 | validation NDCG@10 |"
    lines = [f"## {data}, {part}", "", head, "|---" * 5 + "|"]
    lines += [
        f"| {p['value']:g} | {p['semantic']:.0f} | {p['null']:.0f} | {p['test']:.4f} | {p['validation']:.4f} |"
        for p in points
    ]
    return [*lines, ""]


def _chart(file: Path, title: str, points: Sequence[dict[str, float]], label: str) -> None:
    lines = [
        Line(name, [(p["x"], p[name]) for p in points], colour)
        for colour, name in enumerate(("test", "validation"))
    ]
    chart = line_chart(title, lines, label, "NDCG@10")
    write_text(file, styled(chart))


def _cosines(vectors: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Return statistics of cosines of random pairs of items, for three kinds of vectors.

    The kinds are the encoder's vectors, vectors centred in the row space, and vectors standardised there.
    """
    space = SemanticSpace.of(vectors, semantic=ROW_SPACE)
    kinds: dict[str, NDArray[np.floating]] = {
        "before": vectors,
        "row space, not standardised": (vectors - space.mean) @ space.row_space,
        "row space, standardised": space.standardised(vectors),
    }
    found = {}
    for name, each in kinds.items():
        cosine = random_cosines(each, PAIRS)
        found[name] = {"mean": float(cosine.mean()), "std": float(cosine.std())} | {
            f"{q}%": float(np.quantile(cosine, q / 100)) for q in (5, 50, 95, 99)
        }
    return found


def _cosine_table(data: str, found: dict[str, dict[str, float]]) -> list[str]:
    columns = list(next(iter(found.values())))
    lines = [f"## {data}, cosine of random pairs of items", "", "| vectors | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [
        f"| {name} | " + " | ".join(f"{v:.3f}" for v in row.values()) + " |" for name, row in found.items()
    ]
    return [*lines, ""]


if __name__ == "__main__":
    run_command(main, "bench.alphafuse")
