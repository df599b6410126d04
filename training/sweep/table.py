"""The runs of a sweep as one table: mean over seeds with a 95% interval."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.stats import t as student

Column = tuple[str, Callable[[Mapping[str, Any]], float | None], str]

COLUMNS: tuple[Column, ...] = (
    ("val. loss search", lambda r: r["validation"].get("search.loss"), ".3f"),
    ("val. loss rec.", lambda r: r["validation"].get("recommendation.loss"), ".3f"),
    ("search Hit@10", lambda r: r["search"]["hit@10"], ".4f"),
    ("rec. Hit@10", lambda r: r["recommendation"]["hit@10"], ".4f"),
    ("search NDCG@10", lambda r: r["search"]["ndcg@10"], ".4f"),
    ("rec. NDCG@10", lambda r: r["recommendation"]["ndcg@10"], ".4f"),
    ("text perplexity ×", lambda r: r["general"]["perplexity"]["ratio"] if "general" in r else None, ".3f"),
    ("mean ρ", lambda r: r["conflict"], ".2f"),
    ("s / step", lambda r: r["step_seconds"], ".2f"),
    ("state MB", lambda r: r["cost"]["state_bytes"] / 1e6, ".0f"),
    ("gradient MB", lambda r: r["cost"]["gradient_bytes"] / 1e6, ".0f"),
)

DIFFERENCE = "val. loss − baseline"


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and half the width of Student's 95% interval (None for a single value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    error = statistics.stdev(values) / len(values) ** 0.5
    return mean, float(student.ppf(0.975, len(values) - 1)) * error


def summarise(results: Sequence[Mapping[str, Any]], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """Return variant → column → {mean, half_width, seeds}.

    With a baseline, a further column has the mean difference of the validation loss (sum of both tasks) from it. The
    difference is taken seed by seed, so that the common effect of a seed cancels out.
    """
    reference = {
        result["seed"]: summed_loss(result)
        for result in results
        if result["variant"] == baseline and "failed" not in result
    }
    summary: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(result["variant"] for result in results):
        mine = [result for result in results if result["variant"] == variant]
        summary[variant] = {}
        failed = [result for result in mine if "failed" in result]
        if failed:
            summary[variant]["failed"] = len(failed)
        mine = [result for result in mine if "failed" not in result]
        for name, get, _ in COLUMNS:
            values = [value for value in map(get, mine) if value is not None]
            if values:
                mean, half = interval(values)
                summary[variant][name] = {"mean": mean, "half_width": half, "seeds": len(values)}
        apart = [
            summed_loss(result) - reference[result["seed"]]
            for result in mine
            if result.get("seed") in reference
        ]
        if apart and variant != baseline:
            mean, half = interval(apart)
            summary[variant][DIFFERENCE] = {"mean": mean, "half_width": half, "seeds": len(apart)}
    return summary


def summed_loss(result: Mapping[str, Any]) -> float:
    """Return the sum of the tasks' validation losses of a run."""
    return sum(float(value) for name, value in result["validation"].items() if name.endswith(".loss"))


def markdown(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the summary as a Markdown table, `mean ± half-width`."""
    columns = (*COLUMNS, (DIFFERENCE, lambda _: None, "+.3f"))
    shown = [column for column in columns if any(column[0] in row for row in summary.values())]
    lines = [
        "| variant | " + " | ".join(name for name, _, _ in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for variant, row in summary.items():
        cells: list[str] = []
        name_shown = f"{variant} ({row['failed']} diverged)" if "failed" in row else variant
        for name, _, form in shown:
            entry = row.get(name)
            if entry is None:
                cells.append("")
            elif entry["half_width"] is None:
                cells.append(format(entry["mean"], form))
            else:
                cells.append(f"{entry['mean']:{form}} ± {entry['half_width']:{form.lstrip('+')}}")
        lines.append(f"| {name_shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
