"""The tables of the page: settings, subspaces, cost, evaluation, preservation."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from index.sequence.events import Task
from training.config import TrainConfig
from training.report.markup import escape, note, table
from training.report.run_log import SUBSPACE_FIGURES, RunLog, mapping, number
from training.settings import flat

RANKING = ("hit@10", "ndcg@10", "mrr@10")
NOTHING = "–"


def settings(run: RunLog, baseline: RunLog | None) -> str:
    """Return a table of the method and of every setting that differs from its default in one of the runs."""
    if not run.config:
        return note("No settings: this folder has no config.yaml, which 'gems train' writes when it starts.")
    # Without validation, which would load the default scheme with its libraries.
    defaults = flat(TrainConfig.model_construct().model_dump(mode="json"))
    logs = [run] if baseline is None else [run, baseline]
    names = dict.fromkeys(["method", *(name for log in logs for name in log.config)])
    rows = []
    for name in names:
        values = [_setting(log.config, name) for log in logs]
        if name == "method" or any(value not in (_setting(defaults, name), NOTHING) for value in values):
            rows.append([name, *values, _setting(defaults, name)])
    head = ["setting", "run", "baseline", "default"] if baseline else ["setting", "run", "default"]
    return table(head, rows)


def subspaces(run: RunLog) -> str:
    """Return a table of the subspaces by kind of weight: captured energy, overlap of the bases, leak."""
    means = run.subspace_means()
    if not means:
        return note("No subspaces: train with --method gems, which logs them when it refreshes its bases.")
    head = ["weight type", "captured energy", "basis overlap", "leak ‖UᵀV‖"]
    rows = [
        [kind, *(_figure(figures.get(name), "{:.3g}") for name in SUBSPACE_FIGURES)]
        for kind, figures in means.items()
    ]
    return table(head, rows, "Mean over the layers, each weight as last measured.")


def cost(run: RunLog, baseline: RunLog | None) -> str:
    """Return a table of memory and time of the run and the baseline."""
    logs = [run] if baseline is None else [run, baseline]
    if all(not log.cost() and log.seconds_per_step() is None for log in logs):
        return note(
            "No cost yet: it takes two logged steps, and newer versions of 'gems train' log the bytes."
        )
    rows = [
        [what, *(_bytes(log.cost().get(key)) for log in logs)]
        for what, key in (
            ("optimizer state", "state_bytes"),
            ("gradients", "gradient_bytes"),
            ("knowledge bases", "knowledge_bytes"),
        )
        if any(key in log.cost() for log in logs)
    ]
    rows.append(["seconds a step, median", *(_figure(log.seconds_per_step(), "{:.3g}") for log in logs)])
    missing = "" if any(log.cost() for log in logs) else note("No bytes: this run is of an older version.")
    return table(["cost", "run", "baseline"][: len(logs) + 1], rows) + missing


def evaluation(run: RunLog, baseline: RunLog | None) -> str:
    """Return tables of the test figures of each task and their floors, with 95% intervals."""
    if not run.evaluation:
        bundle, file = (shlex.quote(str(run.folder / name)) for name in ("bundle", "evaluation.json"))
        return note(f"Not evaluated: gems evaluate {bundle} --data DIR --json {file}")
    parts = [
        table(["ranking", *RANKING], list(_rankings(run, baseline, task)), _protocol(run.evaluation, task))
        for task in (t.value for t in Task)
        if mapping(run.evaluation.get(task))
    ]
    if any(mapping(run.evaluation.get("differences")).values()):
        parts.append(
            '<p class="facts">In brackets 95% bootstrap intervals; below a floor, the model minus it.</p>'
        )
    simulated = mapping(mapping(run.evaluation.get("data")).get("simulation"))
    parts += [f'<p class="facts">simulated {escape(k)}: {escape(v)}</p>' for k, v in simulated.items()]
    if baseline is not None and not baseline.evaluation:
        parts.append(note("The baseline is not evaluated: its folder has no evaluation.json."))
    elif baseline is not None and _conditions(run) != _conditions(baseline):
        parts.append(note("Run and baseline were evaluated under different conditions: they do not compare."))
    return "".join(parts) or note("evaluation.json holds no figures of a task; run 'gems evaluate' again.")


def preservation(run: RunLog, baseline: RunLog | None) -> str:
    """Return a table of the preserved general knowledge: every number of preservation.json, with its path."""
    if not run.preservation:
        return note(f"Not measured: gems preservation {shlex.quote(str(run.folder))} --data DIR")
    logs = [run] if baseline is None else [run, baseline]
    columns = [
        {
            name: text
            for group, values in log.preservation.items()
            if group != "protocol"
            for name, text in _leaves(values, group)
        }
        for log in logs
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, NOTHING) for column in columns)] for name in names]
    remarks = [str(log.preservation["note"]) for log in logs if log.preservation.get("note")]
    protocol = mapping(run.preservation.get("protocol"))
    if protocol:
        remarks.append("; ".join(f"{name} {value}" for name, value in protocol.items()))
    facts = "".join(f'<p class="facts">{escape(remark)}</p>' for remark in dict.fromkeys(remarks))
    return table(["figure", "run", "baseline"][: len(columns) + 1], rows) + facts


def _rankings(run: RunLog, baseline: RunLog | None, task: str) -> Iterator[list[str]]:
    for name, log in (("model", run), ("baseline", baseline)):
        if log is not None and mapping(log.evaluation.get(task)):
            intervals = mapping(mapping(log.evaluation.get("intervals")).get(task))
            figures = log.evaluation[task]
            yield [
                name,
                *(_figure(figures.get(m), "{:.4f}") + _interval(intervals.get(m), "{:.4f}") for m in RANKING),
            ]
    for floor, tasks in mapping(run.evaluation.get("floors")).items():
        figures = mapping(mapping(tasks).get(task))
        if figures:
            differences = mapping(mapping(run.evaluation.get("differences")).get(floor))
            yield [
                floor,
                *(
                    _figure(figures.get(metric), "{:.4f}")
                    + _difference(mapping(differences.get(task)).get(metric))
                    for metric in RANKING
                ),
            ]


def _protocol(evaluation: Mapping[str, Any], task: str) -> str:
    protocol = mapping(evaluation.get("protocol"))
    cases = number(mapping(evaluation.get("cases")).get(task))
    facts = [task, *([f"{cases:,.0f} {protocol.get('split', '')} cases"] if cases is not None else [])]
    facts += [str(protocol["ranking"])] if "ranking" in protocol else []
    facts += ["items of the history excluded"] if protocol.get("exclude_history") else []
    return ", ".join(facts)


def _conditions(log: RunLog) -> tuple[object, ...]:
    protocol = mapping(log.evaluation.get("protocol"))
    return {name: value for name, value in protocol.items() if name != "bundle"}, log.evaluation.get("cases")


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield every number, and every list of numbers (a mean and its interval), with its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path} / {name}")
    elif isinstance(value, list) and value and all(number(inner) is not None for inner in value):
        yield path, ", ".join(_figure(inner, "{:.5g}") for inner in value)
    elif number(value) is not None:
        yield path, _figure(value, "{:.5g}")


def _setting(config: Mapping[str, Any], name: str) -> str:
    if name not in config:
        return NOTHING
    value = config[name]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _figure(value: object, form: str) -> str:
    known = number(value)
    return NOTHING if known is None else form.format(known)


def _interval(bounds: object, form: str) -> str:
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return ""
    return f"\n[{_figure(bounds[0], form)}, {_figure(bounds[1], form)}]"


def _difference(values: object) -> str:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return ""
    return f"\n{_figure(values[0], '{:+.4f}')} " + _interval(values[1:], "{:+.4f}").strip()


def _bytes(value: float | None) -> str:
    if value is None:
        return NOTHING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
