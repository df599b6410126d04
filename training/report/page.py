"""The report: one HTML file that needs no other files."""

from __future__ import annotations

from pathlib import Path

from training.outputs import write_text
from training.report import curves, tables
from training.report.document import document
from training.report.markup import escape, note
from training.report.run_log import RunLog


def write_report(run: Path, out: Path, baseline: Path | None = None) -> None:
    """Read the run (and the baseline) and write the page to `out`, atomically.

    Raises `ReportError` if a folder is not a run, `OutputError` if the page cannot be written.
    """
    write_text(out, render(RunLog.read(run), None if baseline is None else RunLog.read(baseline)))


def render(run: RunLog, baseline: RunLog | None) -> str:
    """Return the page as HTML."""
    sections = {
        "Settings": tables.settings(run, baseline),
        "Training loss": curves.training_loss(run),
        "Validation": curves.validation(run, baseline),
        "Gate weights": curves.gate(run, baseline),
        "Learning rate": curves.learning_rate(run),
        "Conflict of the tasks": curves.conflict(run, baseline),
        "Subspaces": tables.subspaces(run),
        "Cost": tables.cost(run, baseline),
        "Evaluation": tables.evaluation(run, baseline),
        "Preservation of general knowledge": tables.preservation(run, baseline),
    }
    title = f"{run.data_name}: {run.method} on {run.backbone}"
    body = "".join(f"<section><h2>{name}</h2>{content}</section>\n" for name, content in sections.items())
    against = "" if baseline is None else f"<p>Baseline (dashed): {_facts(baseline)}</p>\n"
    if baseline is not None and not run.same_data(baseline):
        against += note("Run and baseline were trained on different data: their figures do not compare.")
    return document(title, f"<p>Run: {_facts(run)}</p>\n{against}{body}")


def _facts(log: RunLog) -> str:
    facts = [str(log.folder), f"{log.data_name}, {log.method} on {log.backbone}", f"{log.steps:,} steps"]
    if log.epochs is not None:
        facts.append(f"{log.epochs:.3g} epochs")
    if log.seconds is not None:
        facts.append(f"{log.seconds / 60:.1f} minutes")
    best = max(log.curve("score", "validation"), key=lambda point: point[1], default=None)
    if best is not None:
        facts.append(f"best validation at step {best[0]:,.0f}")
    return escape("; ".join(facts))
