"""The figures of all systems: one JSON-ready value, which the Markdown and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from index.sequence.events import Task
from training.data.schema import DataInfo
from training.errors import EvaluationError
from training.evaluation.case_ranks import CaseRanks
from training.evaluation.comparison.compare import EVERYONE, compare
from training.reproduce.job import FULL, SAMPLED
from training.reproduce.run import Plan, SystemRuns, machine

REFERENCE = "gems"
RANKINGS = {"sampled": SAMPLED, "full": FULL}
METRICS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
VERDICT = "ndcg@10"  # the figure by which a system beats another


def tables(plan: Plan, runs: Mapping[str, SystemRuns], info: DataInfo) -> dict[str, Any]:
    """Return the figures of all systems, JSON-ready:

    data, machine, protocol, budget, clock, tuning, tuning_minutes, seeds    description
    reference                      name of the system that the others are compared with; None if all failed
    rankings.<full|sampled>.<task> {cases, systems: name → figures of `gems compare`}
    systems.<name>                 {kind, of, settings: the chosen ones, edge, tried: [{settings, score | failed}],
                                   cost: means over the seeds}
    against.<full|sampled>.<task>  name → [mean, low, high, 'above' | 'below' | 'level'], NDCG@10 − the reference's
    failed                         name → reason
    """
    measured = {
        name: [outcome for outcome in found.runs.values() if outcome.result] for name, found in runs.items()
    }
    names = [name for name, outcomes in measured.items() if outcomes]
    reference = REFERENCE if REFERENCE in names else next(iter(names), None)
    if reference is not None:
        names = [reference, *(name for name in names if name != reference)]
    rankings = {}
    for ranking, file in RANKINGS.items():
        ranks = [CaseRanks.load(outcome.folder / file) for name in names for outcome in measured[name]]
        rankings[ranking] = _compared(ranks, list(runs))
    return {
        "data": asdict(info),
        "machine": machine(plan.threads),
        "protocol": plan.protocol.model_dump(mode="json"),
        "budget": plan.budget,
        "clock": plan.clock,
        "tuning": plan.tuning,
        "tuning_minutes": plan.budget * plan.tuning_share,
        "seeds": list(plan.seeds),
        "reference": reference,
        "rankings": rankings,
        "systems": {name: _system(plan, name, found) for name, found in runs.items()},
        "against": {
            ranking: {task: _against(entry["systems"]) for task, entry in found.items()}
            for ranking, found in rankings.items()
        },
        "failed": {name: found.reason for name, found in runs.items() if found.reason},
    }


def _compared(ranks: list[CaseRanks], order: list[str]) -> dict[str, Any]:
    """Return task → {cases, systems}, systems in the given order."""
    if not ranks:
        return {}
    try:
        result = compare(ranks)
    except EvaluationError as error:
        raise EvaluationError(f"the systems do not compare: {error}") from error
    found: dict[str, Any] = {}
    for task in (task.value for task in Task if task.value in result):
        entry = result[task][EVERYONE]
        found[task] = {
            "cases": entry["cases"],
            "systems": {name: entry["systems"][name] for name in order if name in entry["systems"]},
        }
    return found


def _system(plan: Plan, name: str, found: SystemRuns) -> dict[str, Any]:
    system = plan.systems[name]
    costs = [outcome.result["cost"] for outcome in found.runs.values() if outcome.result]
    return {
        "kind": system.kind,
        "of": system.of,
        "settings": found.point,
        "edge": found.edge,
        "tried": [
            {"settings": point}
            | ({"score": outcome.result["score"]} if outcome.result else {"failed": outcome.reason})
            for point, outcome in found.tried
        ],
        "cost": {what: sum(cost[what] for cost in costs) / len(costs) for what in costs[0]} if costs else {},
    }


def _against(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the paired differences from the reference, which itself has none."""
    found = {}
    for name, figures in systems.items():
        if "differences" not in figures:
            continue
        mean, low, high = figures["differences"][VERDICT]
        found[name] = [mean, low, high, "above" if low > 0 else "below" if high < 0 else "level"]
    return found
