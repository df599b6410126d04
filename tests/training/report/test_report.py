"""`gems report`: the page shows the logged figures; no text of a run can break it or load external files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml
from support.paths import ROOT
from typer.testing import CliRunner

from training.cli.commands.report import report_command
from training.config import TrainConfig
from training.outputs import OutputError
from training.report.axis import Axis
from training.report.charts import MOST_POINTS, heat_colour, heat_map, line_chart, running_mean, thin
from training.report.page import write_report
from training.report.run_log import ReportError, RunLog, WeightPlace

SVG = "{http://www.w3.org/2000/svg}"
TASKS = ("search", "recommendation")
KINDS = ("q_proj", "v_proj", "down_proj")
LAYERS = 4
STEPS = 120
VOID = {"meta", "br", "hr", "img", "input", "link"}
NAMED_SECTIONS = {
    "Settings", "Training loss", "Validation", "Gate weights", "Learning rate", "Conflict of the tasks",
    "Subspaces", "Cost", "Evaluation", "Preservation of general knowledge",
}  # fmt: skip


def weight(layer: int, kind: str) -> str:
    return f"model.layers.{layer}.self_attn.{kind}.weight"


def step_records(steps: int = STEPS, gates: bool = True) -> Iterator[dict[str, Any]]:
    """Return records in which step 7 has no search, and validation after every tenth step takes a minute."""
    for step in range(1, steps + 1):
        record: dict[str, Any] = {
            "step": step, "epoch": step / 20,
            "search.loss": 5 / step + 0.5 * (step % 2), "recommendation.loss": 6 / step,
            "learning_rate": 1e-3 * step / steps, "tokens": 800, "seconds": 0.25 * step + 60 * ((step - 1) // 10),
            "gradient_norm": 1.0,
        }  # fmt: skip
        if step == 7:
            del record["search.loss"]
        if gates:
            record |= {"gate.search": 0.4, "gate.recommendation": 0.6}
        yield record
        if step % 10 == 0:
            figures = {"search.loss": 4 / step, "recommendation.loss": 5 / step, "score": float(step)}
            yield {"step": step, "epoch": step / 20, "validation": figures}


def rho(layer: int, kind: str) -> float:
    return round(0.05 + (layer * len(KINDS) + KINDS.index(kind)) * 0.17, 3)


def method_records() -> list[dict[str, Any]]:
    places = [(layer, kind) for layer in range(LAYERS) for kind in KINDS]
    first = {weight(*place): 1.0 for place in places}
    last = {weight(*place): rho(*place) for place in places}
    bases = {
        weight(layer, kind): {"energy": 0.2 * layer, "overlap": 0.5, "leak": 1e-7, "conflict": 0.3}
        for layer, kind in places
    }
    bytes_of = {"state_bytes": 3_210_000, "gradient_bytes": 45_600, "knowledge_bytes": 789}
    return [
        {"step": 1, "epoch": 0.0, "cost": bytes_of},
        {"step": 10, "epoch": 0.5, "conflict": first},
        {"step": 20, "epoch": 1.0, "conflict": last},
        {"step": 20, "epoch": 1.0, "subspaces": bases},
    ]


def evaluation() -> dict[str, Any]:
    """Return an evaluation in the format of `training.evaluation.evaluate`, with one metric of each kind."""
    figures = {"hit@10": 0.3141, "ndcg@10": 0.2111, "mrr@10": 0.1777}
    floor = {"hit@10": 0.1222, "ndcg@10": 0.0888, "mrr@10": 0.0555}
    return {
        **dict.fromkeys(TASKS, figures),
        "floors": {"popularity": dict.fromkeys(TASKS, floor), "bm25": {"search": floor}},
        "intervals": {task: {name: [v - 0.01, v + 0.01] for name, v in figures.items()} for task in TASKS},
        "differences": {
            "popularity": {task: {n: [figures[n] - floor[n], 0.1, 0.2] for n in floor} for task in TASKS}
        },
        "cases": dict.fromkeys(TASKS, 1234),
        "protocol": {"split": "test", "ranking": "full catalogue", "exclude_history": True},
        "data": {"name": "films", "simulation": {"searches": "half of them, by a fixed hash"}},
    }


def make_run(folder: Path, records: list[dict[str, Any]], config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    if config is not None:
        settings = TrainConfig.combined(config).model_dump(mode="json")
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return folder


def full_run(folder: Path) -> Path:
    run = make_run(folder, [*step_records(), *method_records()], {"optimiser.batch_size": 7, "gems.rank": 16})
    (run / "environment.json").write_text(json.dumps({"data": "/data/films"}), "utf-8")
    (run / "evaluation.json").write_text(json.dumps(evaluation()), "utf-8")
    kept = {"general": {"perplexity": {"before": 20.5, "after": 21.25}, "nll_difference": [0.1, 0.05, 0.15]}}
    (run / "preservation.json").write_text(json.dumps(kept), "utf-8")
    return run


class Page(HTMLParser):
    """Parser of the page: text by section, tables, attributes. It fails if tags are not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.open, self.tags = source, list[str](), list[str]()
        self.attributes: list[tuple[str, str, str]] = []
        self.sections: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.notes: list[str] = []
        self.styles = ""
        self._section = ""
        self._note = False
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "p" and ("class", "note") in attrs:
            self.notes.append(self._section)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            self._section = data
            self.sections[data] = ""
        elif "style" in self.open:
            self.styles += data
        elif self._section:
            self.sections[self._section] += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def svgs(self) -> dict[str, ElementTree.Element]:
        drawings = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", self.source, re.S)]
        assert len(drawings) == self.tags.count("svg")
        assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in drawings)
        return {drawing.attrib["aria-label"]: drawing for drawing in drawings}

    def row(self, name: str) -> list[str]:
        (found,) = [row for row in self.rows if row[0] == name]
        return found


def report(run: Path, baseline: Path | None = None) -> Page:
    out = run / "report.html"
    write_report(run, out, baseline)
    return Page(out.read_text("utf-8"))


def lines(drawing: ElementTree.Element) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for line in drawing.iter(f"{SVG}polyline"):
        points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        found[line.findtext(f"{SVG}title", "")] = [(x, y) for x, y in points]
    return found


def cells(drawing: ElementTree.Element) -> list[tuple[float, tuple[int, ...]]]:
    """Return (value, colour) of every cell, sorted by value."""
    found = []
    for rect in drawing.iter(f"{SVG}rect"):
        if rect.get("class") == "cell":
            value = float(rect.findtext(f"{SVG}title", "").rsplit(": ", 1)[1])
            found.append((value, tuple(map(int, re.findall(r"\d+", rect.attrib["fill"])))))
    return sorted(found)


def test_curves_have_a_point_for_every_record_and_follow_the_figures(tmp_path: Path) -> None:
    drawings = report(full_run(tmp_path / "run")).svgs()
    losses = lines(drawings["Training loss by task"])
    assert {name: len(points) for name, points in losses.items()} == {
        "search": STEPS - 1, "search, each step": STEPS - 1,
        "recommendation": STEPS, "recommendation, each step": STEPS,
    }  # fmt: skip
    raw = losses["recommendation, each step"]
    assert [x for x, _ in raw] == sorted({x for x, _ in raw})
    assert [y for _, y in raw] == sorted(y for _, y in raw)  # the loss falls: the line goes down the drawing
    validation = lines(drawings["Validation loss by task"])
    assert {name: len(points) for name, points in validation.items()} == dict.fromkeys(TASKS, STEPS // 10)
    gates = lines(drawings["Gate weights of the tasks"])
    assert {len(points) for points in gates.values()} == {STEPS}
    assert max(y for _, y in gates["recommendation"]) < min(y for _, y in gates["search"])  # 0.6 above 0.4
    assert len(lines(drawings["Learning rate"])["learning rate"]) == STEPS
    for drawing in drawings.values():
        width, height = map(float, drawing.attrib["viewBox"].split()[2:])
        points = [point for line in lines(drawing).values() for point in line]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_the_heat_map_has_every_weight_coloured_in_the_order_of_rho(tmp_path: Path) -> None:
    page = report(full_run(tmp_path / "run"))
    (name,) = [name for name in page.svgs() if name.startswith("ρ by weight type and layer")]
    found = cells(page.svgs()[name])
    expected = sorted(rho(layer, kind) for layer in range(LAYERS) for kind in KINDS)
    assert [value for value, _ in found] == pytest.approx(expected)
    assert expected[0] < 1 < expected[-1]
    redness = [red - blue for _, (red, _, blue) in found]
    assert redness == sorted(redness)
    assert len(set(redness)) == len(redness)
    assert f"mean {sum(expected) / len(expected):.2f}" in name
    in_table = [row for row in page.rows if row[0] == "v_proj" and len(row) == 1 + LAYERS]
    assert in_table[0][1:] == [f"{rho(layer, 'v_proj'):.3f}" for layer in range(LAYERS)]
    means = lines(page.svgs()["Mean ρ over the weights"])
    assert len(means["mean ρ"]) == 2  # the two measurements


def test_the_colour_scale_is_white_at_orthogonal_and_fixed_at_its_ends() -> None:
    assert heat_colour(1.0) == (255, 255, 255)
    blue, red = heat_colour(0.0), heat_colour(2.0)
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert (heat_colour(-0.1), heat_colour(2.3)) == (blue, red)


def test_a_cell_that_was_not_measured_is_hollow() -> None:
    drawing = ElementTree.fromstring(heat_map("map", {("a", "0"): 0.5}, ["a", "b"], ["0", "1"]))
    kinds = [rect.get("class") for rect in drawing.iter(f"{SVG}rect") if rect.get("class") != "scale"]
    assert sorted(map(str, kinds)) == ["absent", "absent", "absent", "cell"]
    with pytest.raises(ValueError, match="no cells"):
        heat_map("map", {}, [], ["0"])


def test_tables_hold_settings_subspaces_cost_evaluation_and_preservation(tmp_path: Path) -> None:
    page = report(full_run(tmp_path / "run"))
    assert set(page.sections) == NAMED_SECTIONS
    assert page.row("optimiser.batch_size") == ["optimiser.batch_size", "7", "128"]
    assert page.row("gems.rank") == ["gems.rank", "16", "none"]
    assert page.row("method")[1] == "gems"
    assert not any(row[0] == "epochs" for row in page.rows)  # as by default
    subspaces = [row for row in page.rows if row[0] == "q_proj" and len(row) == 4]
    assert subspaces == [["q_proj", "0.3", "0.5", "1e-07"]]
    assert page.row("optimizer state")[1] == "3.21 MB"
    assert page.row("gradients")[1] == "45.6 kB"
    assert page.row("knowledge bases")[1] == "789 B"
    assert page.row("seconds a step, median")[1] == "0.25"  # the minutes of validation do not count
    models = [row for row in page.rows if row[0] == "model"]
    assert len(models) == 2
    assert models[0][1] == "0.3141\n[0.3041, 0.3241]"
    assert [row[1] for row in page.rows if row[0] == "popularity"] == [
        "0.1222\n+0.1919 [+0.1000, +0.2000]"
    ] * 2
    assert len([row for row in page.rows if row[0] == "bm25"]) == 1
    assert "1,234 test cases" in page.sections["Evaluation"]
    assert "simulated searches: half of them" in page.sections["Evaluation"]
    assert page.row("general / perplexity / after")[1] == "21.25"
    assert page.row("general / nll_difference")[1] == "0.1, 0.05, 0.15"
    assert page.notes == ["Validation"]  # no ranking; nothing else is missing
    assert "films: gems on smollm2-135m" in page.source
    assert f"{STEPS} steps; 6 epochs" in page.source


def test_a_baseline_stands_beside_the_run_on_the_same_scales(tmp_path: Path) -> None:
    other = [*step_records(30, gates=False), {"step": 30, "epoch": 1, "conflict": {weight(0, "q_proj"): 1.9}}]
    baseline = make_run(tmp_path / "plain", other, {"optimiser.batch_size": 9})
    page = report(full_run(tmp_path / "run"), baseline)
    drawings = page.svgs()
    validation = drawings["Validation loss by task"]
    assert {name: len(points) for name, points in lines(validation).items()} == {
        "search": 12, "recommendation": 12, "search, baseline": 3, "recommendation, baseline": 3,
    }  # fmt: skip
    dashed = [
        p.findtext(f"{SVG}title") for p in validation.iter(f"{SVG}polyline") if "dashed" in p.attrib["class"]
    ]
    assert dashed == ["search, baseline", "recommendation, baseline"]
    (ours,) = [name for name in drawings if name.startswith("ρ by weight type and layer:")]
    (theirs,) = [name for name in drawings if name.startswith("ρ by weight type and layer, baseline:")]
    assert drawings[ours].attrib["viewBox"] == drawings[theirs].attrib["viewBox"]
    assert cells(drawings[theirs]) == [(1.9, heat_colour(1.9))]
    assert len(cells(drawings[ours])) == LAYERS * len(KINDS)
    assert set(lines(drawings["Mean ρ over the weights"])) == {"mean ρ", "mean ρ, baseline"}
    assert page.row("optimiser.batch_size") == ["optimiser.batch_size", "7", "9", "128"]
    assert page.row("optimizer state") == ["optimizer state", "3.21 MB", "–"]
    assert "not evaluated" in page.sections["Evaluation"]
    assert str(baseline) in page.source


def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    run, baseline = full_run(tmp_path / "run"), full_run(tmp_path / "baseline")
    page = report(run, baseline)
    assert "do not compare" not in page.source
    assert len([row for row in page.rows if row[0] == "baseline" and "0.3141" in row[1]]) == len(TASKS)
    tested = evaluation()
    tested["protocol"] |= {"exclude_history": False}
    (baseline / "evaluation.json").write_text(json.dumps(tested), "utf-8")
    assert "different conditions" in report(run, baseline).sections["Evaluation"]
    for folder, digest in ((run, "a"), (baseline, "b")):
        (folder / "environment.json").write_text(json.dumps({"data_sha256": digest}), "utf-8")
    assert "trained on different data" in report(run, baseline).source


def test_an_old_run_has_a_page_that_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my run", list(step_records(gates=False)))
    page = report(run)
    missing = NAMED_SECTIONS - {"Training loss", "Learning rate"}
    assert set(page.notes) == missing
    assert (
        f"gems evaluate '{run}/bundle' --data DIR --json '{run}/evaluation.json'"
        in page.sections["Evaluation"]
    )
    assert f"gems preservation '{run}' --data DIR" in page.sections["Preservation of general knowledge"]
    for name in ("Gate weights", "Subspaces", "Conflict of the tasks"):
        assert "--method gems" in page.sections[name]
    assert page.row("seconds a step, median")[1] == "0.25"
    assert len(page.svgs()) == 3


def test_a_run_with_a_single_step_has_a_page(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run", [{"step": 1, "epoch": 0.1, "search.loss": 3.0}]))
    assert lines(page.svgs()["Training loss by task"]).keys() == {"search"}
    assert "Cost" in page.notes
    only_validation = make_run(
        tmp_path / "other", [{"step": 0, "epoch": 0, "validation": {"search.loss": 3.0}}]
    )
    assert "Training loss" in report(only_validation).notes


def test_a_run_of_an_older_version_is_shown_with_the_names_of_today(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", list(step_records(3)))
    old = {"backbone": "scratch", "method": "full", "batch_size": 7, "deflation": True, "stale_moments": True}
    (run / "config.yaml").write_text(yaml.safe_dump(old), "utf-8")
    page = report(run)
    assert page.row("backbone.name") == ["backbone.name", "scratch", "smollm2-135m"]
    assert page.row("optimiser.batch_size") == ["optimiser.batch_size", "7", "128"]
    assert page.row("gems.transport") == ["gems.transport", "False", "True"]
    assert "gems.deflate" not in page.sections["Settings"]  # as by default
    assert RunLog.read(run).backbone == "scratch"


def test_hostile_names_are_escaped_everywhere(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&\x00\ud800"
    place = f"model.layers.2.{hostile.replace('.', '')}.weight"
    records = [
        {"step": 1, "epoch": 0.1, "search.loss": 3.0, hostile: 1.0},
        {"step": 1, "epoch": 0.1, "conflict": {place: 1.2}},
        {"step": 1, "epoch": 0.1, "subspaces": {place: {"energy": 0.5, "overlap": 0.5, "leak": 0.0}}},
    ]
    run = make_run(tmp_path / "<b>run", records)
    setting = "<script>alert(1)</script>\"'&"
    (run / "config.yaml").write_text(
        yaml.safe_dump({"method": setting, setting: setting, "backbone": setting})
    )
    tested = evaluation()
    tested["floors"][hostile] = tested["floors"].pop("popularity")
    tested["data"] = {"name": hostile, "simulation": {hostile: hostile}}
    (run / "evaluation.json").write_text(json.dumps(tested))
    (run / "preservation.json").write_text(json.dumps({hostile: {hostile: 1.5}, "note": hostile}))
    page = report(run, run)
    assert {"script", "b"}.isdisjoint(page.tags)
    for name in (
        "Conflict of the tasks",
        "Subspaces",
        "Evaluation",
        "Preservation of general knowledge",
        "Settings",
    ):
        assert "<script>alert(1)</script>\"'&" in page.sections[name], name
    assert page.svgs()
    assert "alert" in page.source
    assert not {"\x00", "\ud800"} & set(page.source)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = report(full_run(tmp_path / "run"), full_run(tmp_path / "baseline"))
    links = [a for a in page.attributes if re.search(r"(?i)https?:|//", a[2]) and str(tmp_path) not in a[2]]
    assert {(tag, name, value) for tag, name, value in links} == {("svg", "xmlns", SVG.strip("{}"))}
    assert page.source.count("http") == page.tags.count("svg") > 0
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(page.tags)
    assert not {"src", "href", "onload", "style"} & {name for _, name, _ in page.attributes}
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_every_colour_is_defined_for_light_and_dark(tmp_path: Path) -> None:
    page = report(full_run(tmp_path / "run"))
    light, dark = page.styles.split("@media (prefers-color-scheme: dark)")
    used = set(re.findall(r"var\((--\w+)\)", page.styles))
    assert len(used) > 6
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_a_cut_off_last_line_is_skipped_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", list(step_records(5)))
    path = run / "metrics.jsonl"
    whole = path.read_text("utf-8")
    path.write_text(whole + '{"step": 6, "epo', "utf-8")
    assert RunLog.read(run).steps == 5
    path.write_text(whole[:-1], "utf-8")
    assert RunLog.read(run).steps == 5
    for damage in ("{oops\n", "[1]\n", '{"epoch": 1}\n', '{"step": null}\n'):
        path.write_text(damage + whole, "utf-8")
        with pytest.raises(ReportError, match=r"metrics\.jsonl, line 1,"):
            RunLog.read(run)


def test_what_cannot_be_reported_is_refused_with_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(ReportError, match="gems train"):
        write_report(tmp_path / "nowhere", out, None)
    empty = make_run(tmp_path / "empty", [])
    with pytest.raises(ReportError, match="no finished step"):
        write_report(empty, out, None)
    run = make_run(tmp_path / "run", list(step_records(3)))
    with pytest.raises(ReportError, match="empty"):
        write_report(run, out, empty)
    for name in ("evaluation.json", "config.yaml"):
        (run / name).write_text("{", "utf-8")
        with pytest.raises(ReportError, match=re.escape(name)):
            write_report(run, out, None)
        (run / name).unlink()
    (run / "evaluation.json").write_text("[1]", "utf-8")
    with pytest.raises(ReportError, match=r"evaluation\.json"):
        write_report(run, out, None)
    assert not out.exists()


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    lines_of = ['{"step": 1, "search.loss": NaN}', '{"step": 2, "search.loss": 1%s}' % ("0" * 400)]
    lines_of += [
        '{"step": 3, "search.loss": "x"}',
        '{"step": 4, "search.loss": 2.5, "conflict": {"a": null}}',
    ]
    lines_of += ['{"step": 5, "search.loss": true, "validation": 3, "subspaces": {"a": 1}, "cost": []}']
    run = make_run(tmp_path / "run", [])
    (run / "metrics.jsonl").write_text("\n".join(lines_of), "utf-8")
    assert RunLog.read(run).curve("search.loss") == [(4.0, 2.5)]
    page = report(run)
    assert len(lines(page.svgs()["Training loss by task"])["search"]) == 1
    assert {"Conflict of the tasks", "Subspaces", "Cost"} <= set(page.notes)


def test_the_page_is_replaced_whole(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    out = tmp_path / "new" / "page.html"
    write_report(run, out, None)
    stop, seen = threading.Event(), list[str]()

    def watch() -> None:
        while not stop.is_set():
            seen.append(out.read_text("utf-8"))

    reader = threading.Thread(target=watch)
    reader.start()
    for _ in range(5):
        write_report(run, out, None)
    stop.set()
    reader.join()
    assert len(seen) > 1
    assert all(text.startswith("<!doctype html>") and text.endswith("</html>\n") for text in seen)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    with pytest.raises(OutputError, match="a folder"):
        write_report(run, out.parent, None)  # there is a folder
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_command_writes_into_the_run_folder(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    app = typer.Typer()
    app.command()(report_command)
    result = CliRunner().invoke(app, [str(run), "--baseline", str(full_run(tmp_path / "other"))])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert "baseline" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj.weight", WeightPlace("q_proj", 3)),
        ("gpt_neox.layers.0.attention.query_key_value.weight", WeightPlace("query_key_value", 0)),
        ("transformer.h.11.mlp.experts.2.c_fc.weight", WeightPlace("c_fc", 11)),
        ("lm_head.weight", WeightPlace("lm_head", None)),
    ],
)
def test_where_a_weight_sits(name: str, place: WeightPlace) -> None:
    assert WeightPlace.of(name) == place


def test_conflict_falls_back_on_the_subspaces_and_keeps_the_newest_of_every_weight(tmp_path: Path) -> None:
    def measured(step: int, **values: float) -> dict[str, Any]:
        weights = {f"layers.0.{name}.weight": {"energy": 0.5, "conflict": v} for name, v in values.items()}
        return {"step": step, "epoch": 0, "subspaces": weights}

    run = make_run(tmp_path / "run", [measured(1, a=0.1, b=0.2), measured(2, b=0.6)])
    log = RunLog.read(run)
    assert log.last_conflicts() == {WeightPlace("a", 0): 0.1, WeightPlace("b", 0): 0.6}
    assert log.mean_conflict() == [(1.0, pytest.approx(0.15)), (2.0, 0.6)]


def test_the_running_mean_keeps_constants_and_averages_at_most_the_window() -> None:
    assert running_mean([(k, 2.0) for k in range(9)], 4) == [(k, 2.0) for k in range(9)]
    assert [y for _, y in running_mean([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], 2)] == [1.0, 2.0, 4.0, 6.0]


def test_a_very_long_line_is_thinned_without_losing_its_extremes() -> None:
    points = [(float(k), float((k * 7919) % 10007)) for k in range(25_000)]
    points[12_345], points[20_001] = (12_345.0, 1e6), (20_001.0, -1e6)
    kept = thin(points)
    assert MOST_POINTS / 2 <= len(kept) <= MOST_POINTS
    assert {points[12_345], points[20_001]} <= set(kept) <= set(points)
    assert kept == sorted(kept)
    assert thin(points[:MOST_POINTS]) == points[:MOST_POINTS]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1e-6, 9e-6), (0.0, 123456.0), (-2.5, 7.1), (2.00001, 2.00007), (3.0, 3.0)]
)
def test_ticks_are_distinct_round_inside_and_say_their_value(low: float, high: float) -> None:
    axis = Axis.around([low, high], 0, 100)
    ticks = axis.ticks(5)
    assert 2 <= len(ticks) <= 7
    assert len({label for _, label in ticks}) == len(ticks)
    for value, label in ticks:
        assert -0.01 <= axis.place(value) <= 100.01
        assert float(label.replace(",", "")) == pytest.approx(value, abs=(axis.high - axis.low) / 1000)


def test_a_chart_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        line_chart("empty", [], "x", "y")


def test_a_report_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """Both take seconds to load, for a page that is made of the run's files."""
    (tmp_path / "config.yaml").write_text("method: gems\n", "utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "search.loss": 1.0}\n', "utf-8")
    script = (
        "import sys; from pathlib import Path; from training.report.run_log import RunLog; "
        "from training.report import tables; tables.settings(RunLog.read(Path(sys.argv[1])), None); "
        "print({'torch', 'transformers', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"
