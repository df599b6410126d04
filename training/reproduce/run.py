"""`gems reproduce`: tries settings of each system, trains it with the best ones, and puts all systems into tables.

OUT/tuning/NAME-SETTINGS and OUT/NAME-seedS are the jobs (`training.reproduce.job`), OUT/prepared is what they share,
and `reproduce.json` records what all of them have in common.
"""

from __future__ import annotations

import os
import platform
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from rich.console import Console

from index.records import read_json
from training.data.dataset import DataSet
from training.data.splits import leave_one_out
from training.outputs import write_json
from training.reproduce.child import Outcome, do_job
from training.reproduce.job import Job, Protocol
from training.reproduce.systems import ReproduceError, System, check
from training.run.locks import claim
from training.run.run_folder import fingerprint
from training.settings import Clock, DeviceName

RECORD = "reproduce.json"
LONGEST = 180  # characters of a point in the name of its folder; file systems take 255 in all
LOCK, LOCKS = "lock", "locks"  # of the folder, and of each system


@dataclass(frozen=True)
class Plan:
    """Systems to train and to measure, and the conditions that all of them share.

    budget, clock: minutes of each training that is measured, and by which clock (`training.loop.clock.minutes_of`).
    tuning: number of settings that are tried for each system; 1: the first ones are taken.
    tuning_share: minutes of a try, as a share of the budget.
    """

    systems: dict[str, System]
    data: Path
    out: Path
    budget: float
    clock: Clock = "wall"
    seeds: Sequence[int] = (0,)
    tuning: int = 1
    tuning_share: float = 0.25
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    device: DeviceName = "auto"
    protocol: Protocol = field(default_factory=Protocol)

    def job(self, name: str, point: dict[str, Any], seed: int, part: str) -> Job:
        """Return a job of a system. part: see `Job`."""
        minutes = self.budget * (self.tuning_share if part == "validation" else 1)
        return Job(
            name=name, system=self.systems[name], point=point, seed=seed, minutes=minutes, clock=self.clock,
            threads=self.threads, device=self.device, part=part, protocol=self.protocol, data=self.data.resolve(),
            shared=self.out.resolve(),
        )  # fmt: skip

    @property
    def record(self) -> dict[str, Any]:
        """Conditions that all jobs of one folder agree in. Systems and seeds may be added later."""
        return {
            "budget": self.budget, "clock": self.clock, "tuning": self.tuning, "tuning_share": self.tuning_share,
            "threads": self.threads, "device": self.device, "protocol": self.protocol.model_dump(mode="json"),
        }  # fmt: skip


@dataclass(frozen=True)
class SystemRuns:
    """The jobs of one system.

    tried: points of the grid with the outcomes of their trials; empty if only one point was to be tried.
    point: the chosen one; None if every trial failed.
    runs: outcomes by seed.
    """

    tried: list[tuple[dict[str, Any], Outcome]]
    point: dict[str, Any] | None
    runs: dict[int, Outcome]

    @property
    def reason(self) -> str:
        """Reason why a job of it has no result; empty if all is well."""
        if self.point is None:
            return f"no setting could be tried: {self.tried[0][1].reason}"
        failed = {seed: outcome.reason for seed, outcome in self.runs.items() if outcome.reason}
        return "; ".join(f"seed {seed}: {reason}" for seed, reason in failed.items())

    @property
    def edge(self) -> list[str]:
        """Numeric settings whose chosen value is the smallest or largest that was tried."""
        if self.point is None or len(self.tried) < 2:
            return []
        found = []
        for name, value in self.point.items():
            values = {point[name] for point, _ in self.tried}
            numeric = all(isinstance(each, int | float) for each in values)
            if numeric and len(values) > 1 and value in (min(values), max(values)):
                found.append(name)
        return found


def machine(threads: int) -> dict[str, Any]:
    """Return the processor, its instructions that torch uses, and the number of threads."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
    }


def run_all(plan: Plan, console: Console) -> dict[str, SystemRuns]:
    """Do all jobs, system after system. Those that are done are only read, and one that fails stops no other.

    Several processes may share the folder: each takes the next system that no other works on, and waits for the
    others at the end.

    Raises `ReproduceError` before any work for systems that this build lacks, for data without test cases, and for a
    folder that was begun in another way; and if this process is told to stop.
    """
    check(plan.systems, plan.tuning)
    dataset = DataSet.load(plan.data)
    cases = leave_one_out(dataset).test
    if not cases:
        raise ReproduceError(f"{plan.data} has no user with three interactions, so no case to measure")
    plan.protocol.sampled.check(cases, len(dataset.catalogue))
    with claim(plan.out / LOCK, wait=True):
        _check_record(plan, fingerprint(dataset))
    about = machine(plan.threads)
    console.print(
        f"systems: {len(plan.systems)}; minutes of each training: {plan.budget:g}; threads: {about['threads']}, of "
        f"{about['processor']} ({about['instructions']})",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    found: dict[str, SystemRuns] = {}
    for wait in (False, True):
        for place, name in enumerate(plan.systems, start=1):
            if name in found:
                continue
            with claim(plan.out / LOCKS / name, wait=wait) as mine:
                if not mine:
                    continue
                console.rule(f"{place} of {len(plan.systems)}: {name}")
                found[name] = _run_system(plan, name, console)
            if found[name].reason:
                console.print(
                    f"{name} failed: {found[name].reason}", highlight=False, markup=False, soft_wrap=True
                )
        if others := [name for name in plan.systems if name not in found]:
            console.print(f"waiting for other processes: {', '.join(others)}", highlight=False, markup=False)
    return {name: found[name] for name in plan.systems}


def _run_system(plan: Plan, name: str, console: Console) -> SystemRuns:
    system = plan.systems[name]
    trained = system.kind != "floor"  # a floor has nothing to choose, and no seed
    points = system.points(plan.tuning)
    tried: list[tuple[dict[str, Any], Outcome]] = []
    if trained and plan.tuning > 1:
        for point in points:
            console.print(f"trying {_shown(point)}", highlight=False, markup=False)
            job = plan.job(name, point, plan.seeds[0], "validation")
            tried.append((point, do_job(job, plan.out / "tuning" / f"{name}-{point_name(point)}")))
    scores = [(float(outcome.result["score"]), k) for k, (_, outcome) in enumerate(tried) if outcome.result]
    if tried and not scores:
        return SystemRuns(tried, None, {})
    point = points[max(scores, key=lambda each: (each[0], -each[1]))[1] if scores else 0]
    runs = {}
    for seed in plan.seeds if trained else plan.seeds[:1]:
        console.print(f"training with {_shown(point)}, seed {seed}", highlight=False, markup=False)
        runs[seed] = do_job(plan.job(name, point, seed, "test"), plan.out / f"{name}-seed{seed}")
    return SystemRuns(tried, point, runs)


def _check_record(plan: Plan, data: str) -> None:
    """Record what all jobs have in common. Raises `ReproduceError` if the folder was begun in another way."""
    path, wanted = plan.out / RECORD, plan.record | {"data": data}
    if not path.exists():
        if others := sorted({each.name for each in plan.out.iterdir()} - {"data", LOCK, LOCKS}):
            raise ReproduceError(f"{plan.out} holds other files, such as {others[0]}; choose another --out")
        write_json(path, wanted)
        return
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ReproduceError(f"{error}; choose another --out") from error
    changed = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
    if changed:
        raise ReproduceError(
            f"{plan.out} was begun with other {', '.join(changed)}; go on with the same ones, or choose another --out"
        )


def point_name(point: dict[str, Any]) -> str:
    """Return the name of a point in its folder's, so that its result is found in a grid that was widened, too."""
    name = quote(",".join(f"{name}={value}" for name, value in point.items()), safe="=,")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{zlib.crc32(name.encode()):08x}"


def _shown(point: dict[str, Any]) -> str:
    return (
        ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in point.items()
        )
        or "its defaults"
    )


def _processor() -> str:
    """Return the name of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
