"""Which engine serves: the one place that knows them all."""

from __future__ import annotations

from pathlib import Path

from index.bundle.bundle import BundleInfo
from index.trie.allowed import SlotSet
from index.trie.trie import Trie
from server.engine.contract import EngineError, StepwiseEngine
from server.engine.torch_backend.engine import EngineOptions, TorchEngine
from server.engine.vllm_backend.engine import VllmEngine

SEQUENCES = 256  # of vLLM, hypotheses in one pass: each has a row of logits over the whole vocabulary


def open_engine(
    path: Path, info: BundleInfo, trie: Trie, living: SlotSet | None, options: EngineOptions
) -> StepwiseEngine:
    """Load the weights of the bundle at `path` into the engine of `options.kind`.

    info: of that bundle. trie, living: of a version of its index. Raises `EngineError` where the engine is not
    installed, or cannot do what the bundle or the options ask.
    """
    if options.kind == "vllm":
        return _open_vllm(path, info, trie, living, options)
    return TorchEngine.load(path, info, trie, living, options)


def _open_vllm(
    path: Path, info: BundleInfo, trie: Trie, living: SlotSet | None, options: EngineOptions
) -> VllmEngine:
    if options.precision == "int8":
        raise EngineError("the vLLM engine has no int8; choose float32 or bfloat16, or the torch engine")
    if options.cache_bytes == 0:
        raise EngineError("the vLLM engine computes in its cache; set GEMS_CACHE_MIB to more than 0")
    return VllmEngine.load(
        path,
        info,
        trie,
        living,
        dtype=options.precision,
        device=options.device,
        kv_cache_bytes=options.cache_bytes,
        max_num_batched_tokens=options.max_batch_tokens,
        max_num_seqs=min(SEQUENCES, options.max_batch_tokens),
    )
