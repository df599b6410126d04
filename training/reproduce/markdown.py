"""The figures of all systems as Markdown tables; the page shows the same tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.reproduce.tables import METRICS, VERDICT

SHOWN = {"hit@5": "Hit@5", "hit@10": "Hit@10", "ndcg@5": "NDCG@5", "ndcg@10": "NDCG@10"}
NOTHING = "–"


@dataclass(frozen=True)
class Sheet:
    """A table. The first cell of a row is its name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def sheets(found: Mapping[str, Any]) -> Iterator[Sheet]:
    """Yield the tables of quality, then that of cost, then that of tried settings if several were tried.

    found: see `tables`.
    """
    for ranking, tasks in found["rankings"].items():
        for task, entry in tasks.items():
            yield _quality(found, ranking, task, entry)
    yield _cost(found["systems"])
    if found["tuning"] > 1:
        yield _tuning(found["systems"])


def conditions(found: Mapping[str, Any]) -> list[str]:
    """Return sentences about how all systems were trained and measured."""
    data, machine, protocol = found["data"], found["machine"], found["protocol"]
    counts = ", ".join(f"{count:,} {what}" for what, count in data["counts"].items())
    history = "are left out" if protocol["exclude_history"] else "are ranked, too"
    tried = f"{found['tuning']} settings of each system were tried for {found['tuning_minutes']:g} min each"
    time = "min" if found["clock"] == "wall" else "min of processor time a thread"
    lines = [
        f"Data: {data['name']} ({counts}).",
        f"Every training took {found['budget']:g} {time}, or less where its patience ended it; seeds: "
        f"{', '.join(map(str, found['seeds']))}; threads: {machine['threads']}, of {machine['processor']} "
        f"({machine['instructions']}).",
        f"{tried}, and the best by NDCG@10 (mean of its tasks) on {protocol['validation_cases']} validation cases "
        "was taken."
        if found["tuning"] > 1
        else "No settings were tried: each system has the first ones of its grid.",
        f"Items of the history {history}; {protocol['negatives']} sampled negatives are the same for all systems.",
    ]
    return lines + [f"Simulated {what}: {how}." for what, how in data["simulation"].items()]


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """Return sentences on which systems are above or below the reference, by the paired interval."""
    lines = []
    for ranking, tasks in found["against"].items():
        for task, systems in tasks.items():
            for verdict, words in (("above", "beat"), ("below", "lose to"), ("level", "are level with")):
                named = [
                    f"{name} ({mean:+.4f} [{low:+.4f}, {high:+.4f}])"
                    for name, (mean, low, high, how) in systems.items()
                    if how == verdict
                ]
                if named:
                    lines.append(
                        f"{_ranking(found, ranking)}, {task}: {words} {found['reference']}: {', '.join(named)}."
                    )
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """Return everything as Markdown, to be pasted into a page. found: see `tables`."""
    lines = [*(f"{line}\n" for line in conditions(found))]
    for sheet in sheets(found):
        lines += [f"**{sheet.title}**\n", _line(sheet.head), "|---" * len(sheet.head) + "|"]
        lines += [*map(_line, sheet.rows), ""]
    if said := verdicts(found):
        lines += [f"**Against {found['reference']}** ({SHOWN[VERDICT]}, paired 95% intervals)\n"]
        lines += [*(f"- {line}" for line in said), ""]
    if found["failed"]:
        lines += ["**Failed**\n", *(f"- {name}: {reason}" for name, reason in found["failed"].items()), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _ranking(found: Mapping[str, Any], ranking: str) -> str:
    return "whole catalogue" if ranking == "full" else f"{found['protocol']['negatives']} sampled negatives"


def _quality(found: Mapping[str, Any], ranking: str, task: str, entry: Mapping[str, Any]) -> Sheet:
    reference, systems = found["reference"], entry["systems"]
    # the reference of a task that it does not answer is the first system that does
    first = next((name for name, figures in systems.items() if "differences" not in figures), reference)
    rows = []
    for name, figures in systems.items():
        low, high = figures["intervals"][VERDICT]
        cells = [name, *(f"{figures[metric]:.4f}" for metric in METRICS)]
        cells[-1] += f" [{low:.4f}, {high:.4f}]"
        apart = figures.get("differences", {}).get(VERDICT)
        cells.append(f"{apart[0]:+.4f} [{apart[1]:+.4f}, {apart[2]:+.4f}]" if apart else NOTHING)
        rows.append(cells)
    rows += [[name, *["failed"] * (len(METRICS) + 1)] for name in found["failed"] if name not in systems]
    title = f"{task}, {_ranking(found, ranking)}, {entry['cases']:,} cases"
    head = ["system", *(SHOWN[metric] for metric in METRICS), f"{SHOWN[VERDICT]} − {first}"]
    return Sheet(title, head, rows)


def _cost(systems: Mapping[str, Mapping[str, Any]]) -> Sheet:
    rows = []
    for name, system in systems.items():
        cost = system["cost"]
        rows.append([
            name,
            f"{system['kind']} {system['of']}",
            _settings(system["settings"]),
            f"{cost['parameters']:,.0f}" if "parameters" in cost else NOTHING,
            f"{cost['state_bytes'] / 1e6:,.1f}" if "state_bytes" in cost else NOTHING,
            f"{cost['seconds'] / 60:.1f}" if "seconds" in cost else NOTHING,
            f"{cost['cpu_seconds'] / 60:.1f}" if "cpu_seconds" in cost else NOTHING,
            f"{cost['ranking_seconds']:.0f}" if "ranking_seconds" in cost else NOTHING,
        ])  # fmt: skip
    head = [
        "system",
        "kind",
        "chosen settings",
        "trained weights",
        "optimizer MB",
        "minutes",
        "CPU minutes",
        "ranking s",
    ]
    return Sheet("What each cost (means over the seeds)", head, rows)


def _tuning(systems: Mapping[str, Mapping[str, Any]]) -> Sheet:
    rows = []
    for name, system in systems.items():
        if not system["tried"]:
            continue
        tried = "; ".join(
            f"{_settings(each['settings'])}: " + (f"{each['score']:.4f}" if "score" in each else "failed")
            for each in system["tried"]
        )
        rows.append([name, tried, ", ".join(system["edge"]) or "no"])
    head = ["system", "tried: NDCG@10 on validation", "best at an edge of its grid"]
    return Sheet("Tried settings", head, rows)


def _settings(point: Mapping[str, Any] | None) -> str:
    if not point:
        return NOTHING
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in point.items()
    )
