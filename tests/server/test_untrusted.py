"""Nothing that comes from outside runs as code or becomes a control or item token."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from support.engines import GatedEngine, hosted
from support.paths import ROOT

from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# `Connection.recv` and queues of multiprocessing unpickle; `recv_bytes` does not.
UNPICKLING = {"recv", "Queue", "SimpleQueue", "JoinableQueue", "Manager", "load_module", "exec_module"}


def server_paths() -> list[Path]:
    """The modules of the server, and all of ours that they import."""
    found: set[Path] = set()
    waiting = sorted((ROOT / "server").rglob("*.py"))
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
            places = [ROOT.joinpath(*name.split(".")) for name in names]
            waiting += [
                p for each in places for p in (each.with_suffix(".py"), each / "__init__.py") if p.exists()
            ]
    return sorted(found)


def test_the_paths_are_those_of_the_server() -> None:
    names = {str(path.relative_to(ROOT)) for path in server_paths()}
    assert {"server/engine/process/worker.py", "index/files.py", "index/identifiers/codebooks.py"} <= names
    assert "index/embeddings.py" not in names  # reads a sentence encoder, offline


def unsafe(source: str) -> list[str]:
    """What of a module could run code that it was given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            found.append(str(node.module))
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found.append("trust_remote_code")
        if isinstance(node, ast.Call):
            found += _unsafe_call(node)
    return found


def _unsafe_call(call: ast.Call) -> list[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    safe = keywords.get("allow_pickle")
    if name in UNPICKLING or (not owner and name in ("eval", "exec", "compile", "__import__")):
        return [name]
    if name == "load" and owner in ("torch", "yaml", "pd"):
        return [f"{owner}.load"]
    if name == "load" and owner == "np" and not (isinstance(safe, ast.Constant) and safe.value is False):
        return ["np.load without allow_pickle=False"]
    if name == "from_pretrained" and "local_files_only" not in keywords:
        return ["from_pretrained without local_files_only"]
    if name == "from_pretrained" and "Model" in owner and "use_safetensors" not in keywords:
        return ["from_pretrained without use_safetensors"]
    return []


@pytest.mark.parametrize("path", server_paths(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_and_no_foreign_code_on_a_server_path(path: Path) -> None:
    assert unsafe(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import joblib.numpy_pickle", "torch.load(f)"),
        *(
            "np.load(f)",
            "np.load(f, allow_pickle=True)",
            "connection.recv()",
            "context.Queue()",
            "eval(text)",
        ),
        *("AutoTokenizer.from_pretrained(p, local_files_only=True, trust_remote_code=True)",),
        *("AutoTokenizer.from_pretrained(p)", "AutoModel.from_pretrained(p, local_files_only=True)"),
    ],
)
def test_the_check_can_fail(source: str) -> None:
    assert unsafe(source)


@pytest.fixture(scope="module")
def watched(bundle: Bundle, engine: TorchEngine) -> Iterator[tuple[TestClient, list[list[RankRequest]]]]:
    """A client, and the prompts that reach the engine."""
    gated = GatedEngine(engine)
    with TestClient(create_app(bundle, hosted(gated), Settings())) as client:
        yield client, gated.batches


def texts(bundle: Bundle) -> st.SearchStrategy[str]:
    """Texts that are made of added tokens, as they are or in part, and of anything else."""
    names = st.sampled_from([*bundle.vocabulary.token_names(), "<|endoftext|>"])
    parts = (
        names | st.text(max_size=5) | names.map(lambda name: name[1:]) | names.map(lambda name: f" {name} ")
    )
    return st.lists(parts, min_size=1, max_size=8).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_field_of_a_request_becomes_an_added_token(
    watched: Any, bundle: Bundle, data: st.DataObject
) -> None:
    """Whatever is typed: the added tokens of a prompt are those that its known items and its form need."""
    client, batches = watched
    text = texts(bundle)
    known = data.draw(st.lists(st.integers(0, 59), max_size=5))
    history: list[dict[str, str]] = []
    for row in known:
        entry = {"item_id": f"item-{row}"}
        typed = data.draw(st.none() | text)
        history.append(entry if typed is None else entry | {"behaviour": "search", "query": typed})
    history += [{"item_id": item} for item in data.draw(st.lists(text.filter(bool), max_size=2))]
    query = data.draw(text)
    body = {
        "query": query,
        "history": history,
        "exclude": [item["item_id"] for item in history[len(known) :]],
    }
    response = client.post("/search", json=body)
    if response.status_code != 200:
        assert response.status_code in (400, 422)  # blank, or not Unicode
        return
    prompt = batches[-1][0].prompt
    first, levels = bundle.vocabulary.first_added, bundle.vocabulary.levels
    has_query = [bundle.encoder.has_tokens(entry.get("query") or "") for entry in history[: len(known)]]
    kept = has_query[response.json()["dropped"]["old_events"] :]
    expected = sum(levels + (2 if searched else 1) for searched in kept) + 2
    assert sum(token >= first for token in prompt) == expected


@settings(max_examples=200, deadline=None)
@given(data=st.data())
@example(data=None)
def test_no_title_becomes_an_added_token(bundle: Bundle, data: st.DataObject | None) -> None:
    """Every added token by itself, and mixtures; titles are written as queries are."""
    if data is None:
        for name in bundle.vocabulary.token_names():
            assert max(bundle.encoder.encode_text(name)) < bundle.info.first_added_token
        return
    ids = bundle.encoder._encode(data.draw(texts(bundle)))
    assert all(token < bundle.info.first_added_token for token in ids)
