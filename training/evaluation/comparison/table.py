"""A comparison as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from index.sequence.events import Task

SHOWN = ("hit@10", "ndcg@10", "hit@50")


def markdown(result: Mapping[str, Any]) -> str:
    """Return one table per task and group.

    It shows means with 95% intervals over cases, the paired difference in Hit@10 from the first system, and the cost if
    it is known.
    """
    lines: list[str] = []
    for task in Task:
        for group, entry in result.get(task.value, {}).items():
            lines += [f"**{task.value}, {group}** ({entry['cases']} cases)", ""]
            if entry["systems"]:
                lines += _table(entry["systems"])
            lines.append("")
    return "\n".join(lines)


def _table(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first = next(iter(systems))
    head = [
        "system",
        "seeds",
        "Hit@10",
        "NDCG@10",
        "Hit@50",
        f"Hit@10 − {first}",
        "weights",
        "epochs",
        "CPU s",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, figures in systems.items():
        low, high = figures["intervals"]["hit@10"]
        cells = [name, str(figures["seeds"])]
        cells += [f"{figures[metric]:.4f}" for metric in SHOWN]
        cells[2] += f" [{low:.4f}, {high:.4f}]"
        difference = figures.get("differences", {}).get("hit@10")
        cells.append(
            f"{difference[0]:+.4f} [{difference[1]:+.4f}, {difference[2]:+.4f}]" if difference else ""
        )
        cost = figures.get("cost", {})
        cells += [
            f"{cost[what]:,.0f}" if what in cost else "" for what in ("parameters", "epochs", "cpu_seconds")
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
