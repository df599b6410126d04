"""The metrics of a run: whole lines, strict JSON, and the same figures in TensorBoard."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from training.run.metrics_log import MetricsError, MetricsLog

RECORDS = [
    {"step": 1, "epoch": 0.1, "search.loss": 3.5, "tokens": 800},
    {"step": 1, "epoch": 0.1, "conflict": {"layers.0.q_proj.weight": 1.25}},
    {"step": 2, "epoch": 0.2, "validation": {"search.loss": 3.25, "score": -3.25}},
    {"step": 2, "epoch": 0.2, "subspaces": {"layers.0.q_proj.weight": {"energy": 0.75, "note": "text"}}},
]


def read(run: Path) -> list[object]:
    text = (run / "metrics.jsonl").read_text("utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_every_record_is_a_line_that_others_can_read_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for count, record in enumerate(RECORDS, start=1):
            log.write(record)
            assert read(tmp_path) == RECORDS[:count]
        log.flush_to_disk()
    assert not (tmp_path / "tensorboard").exists()


def test_a_second_log_appends_after_the_last_whole_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(RECORDS[0])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "sea')  # killed while it wrote
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(RECORDS[2])
    assert read(tmp_path) == [RECORDS[0], RECORDS[2]]


def test_figures_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write({"step": 1, "a": math.nan, "b": {"c": math.inf, "d": 1.5}, "e": [-math.inf, 2]})
    line = (tmp_path / "metrics.jsonl").read_text("utf-8")
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "a": None, "b": {"c": None, "d": 1.5}, "e": [None, 2],
    }  # fmt: skip


def test_a_record_that_is_no_json_leaves_the_log_whole(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(RECORDS[0])
        with pytest.raises(TypeError):
            log.write({"step": 2, "what": object()})
        log.write(RECORDS[2])
    assert read(tmp_path) == [RECORDS[0], RECORDS[2]]


def test_tensorboard_that_is_not_installed_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # marks a module that cannot be imported
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MetricsError, match=r"pip install 'gems-sr\[tensorboard\]'"):
        MetricsLog(tmp_path, tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_numbers_are_mirrored_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        for record in RECORDS:
            log.write(record)
        log.flush_to_disk()
        during = scalars(tmp_path)
    assert read(tmp_path) == RECORDS
    found = scalars(tmp_path)
    assert found == during
    assert set(found) == {
        "epoch", "search.loss", "tokens", "conflict/layers.0.q_proj.weight", "validation/search.loss",
        "validation/score", "subspaces/layers.0.q_proj.weight/energy",
    }  # fmt: skip
    assert found["conflict/layers.0.q_proj.weight"] == [(1, 1.25)]
    assert found["validation/search.loss"] == [(2, 3.25)]


def test_tensorboard_forgets_the_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    checkpointed = path.read_text("utf-8").splitlines(keepends=True)[:1]
    path.write_text("".join(checkpointed), "utf-8")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.write({"step": 2, "loss": 20.0})
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 20.0)]
