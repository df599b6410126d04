"""The curves of the page: losses, ranking figures, gate weights, learning rate, and conflict of the tasks."""

from __future__ import annotations

from index.sequence.events import Task
from training.report.charts import Line, heat_map, line_chart, running_mean
from training.report.markup import figure, note, table
from training.report.run_log import RunLog, WeightPlace

TASKS = tuple(task.value for task in Task)


def training_loss(run: RunLog) -> str:
    """Draw the loss of each task: every step faint, the running mean strong."""
    lines, window = [], max(1, len(run.records) // 50)
    for colour, task in enumerate(TASKS):
        raw = run.curve(f"{task}.loss")
        if window > 1:
            lines.append(Line(f"{task}, each step", raw, colour, faint=True))
        lines.append(Line(task, running_mean(raw, window), colour))
    if not any(line.points for line in lines):
        return note("No training loss was logged: 'gems train' writes one line a step to metrics.jsonl.")
    caption = f"Mean over {window} steps; faint: every step." if window > 1 else ""
    return figure(line_chart("Training loss by task", lines, "step", "loss (nats an item)"), caption)


def validation(run: RunLog, baseline: RunLog | None) -> str:
    """Draw the validation loss, and Hit@10 if the validation ranked; the baseline is dashed."""
    losses = _by_task(run, baseline, "loss")
    if not losses:
        return note("No validation yet: 'gems train' validates every --validation.every epochs.")
    drawn = figure(line_chart("Validation loss by task", losses, "step", "loss (nats an item)"))
    hits = _by_task(run, baseline, "hit@10")
    if hits:
        return drawn + figure(line_chart("Validation Hit@10 by task", hits, "step", "Hit@10"))
    return drawn + note(
        "No ranking in validation: train with --validation.stop-on ndcg@10 for Hit@10 curves."
    )


def gate(run: RunLog, baseline: RunLog | None) -> str:
    """Draw the gate weight of each task."""
    lines = [
        Line(_named(task, log is baseline), log.curve(f"gate.{task}"), colour, dashed=log is baseline)
        for log in _both(run, baseline)
        for colour, task in enumerate(TASKS)
    ]
    if not any(line.points for line in lines):
        return note("No gate weights: train with --method gems, which logs them at every step.")
    return figure(
        line_chart("Gate weights of the tasks", lines, "step", "gate weight"),
        "How strongly each task's gradient enters the update.",
    )


def learning_rate(run: RunLog) -> str:
    points = run.curve("learning_rate")
    if not points:
        return note("No learning rate was logged: 'gems train' writes it at every step.")
    return figure(line_chart("Learning rate", [Line("learning rate", points, 3)], "step", "learning rate"))


def conflict(run: RunLog, baseline: RunLog | None) -> str:
    """Draw ρ, the conflict of the tasks' gradients, by weight type and layer, and its mean over the steps."""
    logs = _both(run, baseline)
    maps = [(log, log.last_conflicts()) for log in logs]
    if not any(places for _, places in maps):
        return note(
            "No conflict was measured: train with --method gems, or measure ρ during training, so that "
            "metrics.jsonl gets 'conflict' records."
        )
    layers = _layers([place for _, places in maps for place in places])
    kinds = list(dict.fromkeys(place.kind for _, places in maps for place in places))
    parts = []
    for log, places in maps:
        name = _named("ρ by weight type and layer", log is baseline)
        if not places:
            parts.append(f"<div>{note(f'{name}: not measured in this run.')}</div>")
            continue
        step = log.conflicts()[-1][0]
        cells = {(place.kind, _layer(place.layer)): rho for place, rho in places.items()}
        shown = figure(
            heat_map(name, cells, kinds, [_layer(layer) for layer in layers]),
            f"{name}, last measured at step {step:,}.",
        )
        values = table(
            ["weight type", *(f"layer {_layer(layer)}" for layer in layers)],
            [[kind, *(_cell(places.get(WeightPlace(kind, layer))) for layer in layers)] for kind in kinds],
        )
        parts.append(f"<div>{shown}<details><summary>as a table</summary>{values}</details></div>")
    curves = [
        Line(_named("mean ρ", log is baseline), log.mean_conflict(), 4, log is baseline) for log in logs
    ]
    return (
        '<p class="facts">ρ = 1 − cos of the two tasks\' gradients: 0 aligned, 1 orthogonal, 2 opposed.</p>'
        f'<div class="beside">{"".join(parts)}</div>'
        + figure(line_chart("Mean ρ over the weights", curves, "step", "mean ρ"))
    )


def _by_task(run: RunLog, baseline: RunLog | None, figure_name: str) -> list[Line]:
    lines = [
        Line(_named(task, log is baseline), points, colour, dashed=log is baseline)
        for log in _both(run, baseline)
        for colour, task in enumerate(TASKS)
        if (points := log.curve(f"{task}.{figure_name}", "validation"))
    ]
    return lines


def _both(run: RunLog, baseline: RunLog | None) -> list[RunLog]:
    return [run] if baseline is None else [run, baseline]


def _named(what: str, of_baseline: bool) -> str:
    return f"{what}, baseline" if of_baseline else what


def _layers(places: list[WeightPlace]) -> list[int | None]:
    """Return the distinct layers in order; None, for weights outside the layers, is last."""
    found = {place.layer for place in places}
    return [*sorted(layer for layer in found if layer is not None), *([None] if None in found else [])]


def _layer(layer: int | None) -> str:
    return "none" if layer is None else str(layer)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
