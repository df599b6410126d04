"""The choice of the back end: the one place that knows them all."""

from __future__ import annotations

from pathlib import Path

from index.bundle.bundle import BundleInfo
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import StepwiseEngine
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from server.engine.vllm_backend.engine import VllmEngine


def open_engine(
    path: Path,
    info: BundleInfo,
    trie: Trie,
    living: SlotSet | None,
    options: EngineOptions,
    searches: Allowed | None = None,
) -> StepwiseEngine:
    """Load the weights of the bundle at `path` into the back end of `options.engine`.

    info: description of that bundle.
    trie, living: identifiers of a version of its index, and the slots of the items that are not removed.
    searches: items that searches may return, if they write identifiers of their own.
    Raises `EngineError` if the back end is not installed, or cannot do what the bundle or the options need.
    """
    back_end = VllmEngine if options.engine == "vllm" else TorchEngine
    return back_end.load(path, info, trie, living, options, searches)
