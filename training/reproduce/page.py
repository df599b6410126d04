"""The figures of all systems as one HTML page that needs no other files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from index.sequence.events import Task
from training.report.document import document
from training.report.markup import escape, figure, note, table
from training.report.scatter import Dot, scatter_chart
from training.reproduce.markdown import SHOWN, conditions, sheets, verdicts
from training.reproduce.systems import Kind
from training.reproduce.tables import VERDICT

KINDS = get_args(Kind)
COSTS = {"seconds": (60.0, "minutes of training"), "state_bytes": (1e6, "MB of optimizer state")}


def render(found: Mapping[str, Any]) -> str:
    """Return the page. found: see `tables`."""
    body = [f"<p>{escape(line)}</p>\n" for line in conditions(found)]
    if found["failed"]:
        rows = [[name, reason] for name, reason in found["failed"].items()]
        body += ["<section><h2>Failed systems</h2>", table(["system", "reason"], rows), "</section>\n"]
    body += ["<section><h2>Tables</h2>"]
    body += [table(sheet.head, sheet.rows, sheet.title) for sheet in sheets(found)]
    body += ["</section>\n<section><h2>Where a system beats or loses to the reference</h2>"]
    said = [f"<li>{escape(line)}</li>" for line in verdicts(found)]
    body += ["<ul>", *said, "</ul>" if said else note("One system alone compares with nothing.")]
    body += ["</section>\n<section><h2>Charts</h2>"]
    body += list(_charts(found)) or [note("No system was measured.")]
    body += ["</section>\n"]
    return document(f"{found['data']['name']}: every system, {found['budget']:g} min each", "".join(body))


def _charts(found: Mapping[str, Any]) -> Iterator[str]:
    """Draw, of the full ranking, quality against the costs of training, and one task against the other."""
    ranked = found["rankings"].get("full", {})
    systems = found["systems"]
    metric = SHOWN[VERDICT]
    for task, entry in ranked.items():
        for cost, (unit, label) in COSTS.items():
            dots = [
                Dot(
                    name, systems[name]["cost"].get(cost, 0.0) / unit, figures[VERDICT], systems[name]["kind"]
                )
                for name, figures in entry["systems"].items()
            ]
            title = f"Quality of {task} against {label}"
            drawn = scatter_chart(title, dots, label, f"{metric}, {task}", KINDS)
            yield figure(drawn, f"{title}; floors are not trained.")
    both = [ranked.get(task.value, {}).get("systems", {}) for task in (Task.SEARCH, Task.RECOMMENDATION)]
    dots = [
        Dot(name, both[0][name][VERDICT], both[1][name][VERDICT], systems[name]["kind"])
        for name in systems
        if all(name in each for each in both)
    ]
    if dots:
        title = "Recommendation against search, systems that answer both"
        drawn = scatter_chart(title, dots, f"{metric}, search", f"{metric}, recommendation", KINDS)
        yield figure(drawn, title + ".")
