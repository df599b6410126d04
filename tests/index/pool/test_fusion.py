from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.pool.fusion import ITEM_SIGNALS, LATER, NOTHING_SIGNALS, Fusion, TaskFusion, relevance
from index.records import RecordError
from index.sequence.events import Task


def fusion_of(**weights: float) -> Fusion:
    """Return weights of both tasks; those that are not given are 0."""
    return Fusion(
        {
            task: TaskFusion(
                {name: weights.get(name, 0.0) for name in (*ITEM_SIGNALS[task], *NOTHING_SIGNALS[task])},
                0.01,
                {"cases": 3},
            )
            for task in Task
        }
    )


@given(st.lists(st.floats(-50, 50), max_size=20), st.floats(-50, 50))
def test_the_relevances_of_a_pool_and_of_nothing_are_probabilities(
    scores: list[float], nothing: float
) -> None:
    shares = relevance(np.array(scores), nothing)
    expected = [math.exp(s) / (math.exp(nothing) + sum(math.exp(other) for other in scores)) for s in scores]
    np.testing.assert_allclose(shares, expected, rtol=1e-9)
    assert shares.sum() <= 1 + 1e-12


def test_what_is_saved_is_opened(tmp_path: Path) -> None:
    fusion = fusion_of(code=0.7, fresh=-3.0)
    fusion.save(tmp_path / "fusion.json")
    assert Fusion.open(tmp_path / "fusion.json") == fusion


BAD: dict[str, Any] = {
    "text": "0.5", "true": True, "null": None, "list": [1.0], "huge": 1e300, "not a number": math.nan, "negative": -0.1,
}  # fmt: skip


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("field", ["weights.code", "cutoff", "figures", "weights"])
def test_every_bad_value_is_refused_with_the_file_and_the_field(
    field: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "fusion.json"
    fusion_of(code=0.7).save(path)
    record = json.loads(path.read_text("utf-8"))
    *above, name = field.split(".")
    (record["search"][above[0]] if above else record["search"])[name] = value
    path.write_text(json.dumps(record), "utf-8")
    with pytest.raises(RecordError, match=r"fusion\.json"):
        Fusion.open(path)


def test_a_file_from_before_a_signal_counts_it_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fusion.json"
    expected = fusion_of(code=0.7, likeness=0.5, fresh_likeness=0.4)
    expected.save(path)
    record = json.loads(path.read_text("utf-8"))
    for task in record.values():
        for name in LATER:
            task["weights"].pop(name, None)
    path.write_text(json.dumps(record), "utf-8")
    found = Fusion.open(path)
    for task in Task:
        names = np.array(ITEM_SIGNALS[task])
        later = np.isin(names, LATER)
        assert later.any()
        assert (found.item_weights(task) == np.where(later, 0, expected.item_weights(task))).all()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"search": 1}', '{"sear": {}}', "[" * 100_000])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fusion.json"
    path.write_text(text, "utf-8")
    with pytest.raises(RecordError, match=r"fusion\.json"):
        Fusion.open(path)
