"""`docs/api.md` is true: it has every setting, metric and error, and its examples are valid."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.engines import hosted
from support.paths import ROOT
from support.servers import serving

from index.bundle.bundle import Bundle
from server.api.errors import ServerError
from server.api.requests import HistoryEntry, SearchRequest
from server.api.responses import Answer, Problem
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings
from server.telemetry.metrics import Metrics

DOCS = ROOT / "docs"
TEXT = (DOCS / "api.md").read_text("utf-8")
OPERATIONS = (DOCS / "operations.md").read_text("utf-8")


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_setting_and_its_default_are_documented(name: str) -> None:
    default = Settings.model_fields[name].default
    assert f"| `GEMS_{name.upper()}` | `{default}` |" in TEXT


def test_no_setting_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"`GEMS_([A-Z_]+)`", TEXT)) == {name.upper() for name in Settings.model_fields}


def test_operations_name_what_exists() -> None:
    assert set(re.findall(r"GEMS_([A-Z_]+)", OPERATIONS)) <= {name.upper() for name in Settings.model_fields}
    documented = set(re.findall(r"`(gems_\w+)`", TEXT))
    assert set(re.findall(r"gems_[a-z_]+", OPERATIONS)) <= documented
    labels = re.findall(r'(gems_\w+)\{(\w+)="(\w+)"\}', OPERATIONS)
    series = Metrics().render().decode()
    assert labels
    for name, label, value in labels:
        assert re.search(rf'^{name}\w*\{{[^}}]*{label}="{value}"', series, re.MULTILINE)


def test_metrics_are_documented_with_their_labels() -> None:
    documented = dict(re.findall(r"^\| `(gems_\w+)` \| (.*?) ?\|", TEXT, re.MULTILINE))
    metrics = Metrics()
    ours = [metric for metric in vars(metrics).values() if hasattr(metric, "_labelnames")]
    labels = {metric.describe()[0].name: metric._labelnames for metric in ours}
    actual = {}
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        actual[name] = ", ".join(f"`{label}`" for label in labels.get(family.name, ()))
    assert documented == actual


@pytest.mark.parametrize("error", [ServerError, *ServerError.__subclasses__()], ids=lambda error: error.code)
def test_error_is_documented(error: type[ServerError]) -> None:
    assert f"| {error.status} | `{error.code}` |" in TEXT


@pytest.mark.parametrize("field", [*SearchRequest.model_fields, *HistoryEntry.model_fields])
def test_field_of_a_request_is_documented(field: str) -> None:
    assert re.search(rf"^\| `(history\[\]\.)?{field}` \|", TEXT, re.MULTILINE)


def test_curl_examples_are_answered(client: TestClient) -> None:
    examples = re.findall(r"curl -s localhost:8000(/\w+) .*? -d '(.*?)'", TEXT, re.DOTALL)
    assert [path for path, _ in examples] == [
        *("/search", "/recommend", "/recommend", "/recommend", "/batch", "/search", "/search", "/recommend")
    ]
    for path, body in examples:
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200


def test_python_example_runs(bundle: Bundle, engine: TorchEngine, capsys: pytest.CaptureFixture[str]) -> None:
    example, paging = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with serving(create_app(bundle, hosted(engine), Settings(api_keys="KEY"))) as port:
        here: dict[str, Any] = {}
        exec(example.replace("localhost:8000", f"127.0.0.1:{port}"), here)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 + Settings().default_limit
        assert lines[0].startswith("1 item-")
        with pytest.raises(RuntimeError, match=r"not valid.*request"):
            here["ask"]("/v1/search", query="")
        exec(paging, here)
        printed = capsys.readouterr().out.splitlines()
        titles = [title for line in printed for title in ast.literal_eval(line)]
        assert (
            len(titles) == len(set(titles)) == len(bundle.index.catalogue)
        )  # every item once, in pages of 20
        here["client"].close()


def test_answers_and_problems_look_as_documented(client: TestClient) -> None:
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
    assert shape(examples[0]) == shape(client.post("/search", json={"query": "a", "limit": 2}).json())
    assert set(examples[1]) == set(Problem.model_fields)
    Answer.model_validate(examples[0])
    Problem.model_validate(examples[1])


def shape(value: Any) -> Any:
    """Return the names of all fields, without values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [shape(value[0])]
    return None
