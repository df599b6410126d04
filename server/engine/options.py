"""Settings of an engine, for both back ends. One object is passed on from the server's settings to the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "cuda"]
BackEndName = Literal["torch", "vllm"]
Precision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Settings of an engine.

    engine: the back end, see `open_engine`.
    threads: CPU threads of torch in a process that the engine has to itself; 0 for torch's own choice.
    device: where the model computes; `cuda` is the current GPU.
    precision: of weights, keys and values, in a packed copy; with `int8` the linear layers have 8 bits and all else is
        bfloat16. None reads the model's own weights, which may change between two calls. Scores are summed in float64.
    max_batch_tokens: prompt and beam positions of the requests that are ranked together; others wait.
    join_rows: rows of a pass up to which new requests join requests that have begun already.
    cache_bytes: of the prefix cache; 0 for none, also while the weights still change.
    cuda_graphs: shapes of padded passes whose graphs are kept (torch, decoder-only, packed weights); 0 for no padding.
        It saves time on a GPU; on a CPU nothing is captured and the padding only costs.
    """

    engine: BackEndName = "torch"
    threads: int = 0
    device: Device = "cpu"
    precision: Precision | None = "float32"
    max_batch_tokens: int = 16384
    join_rows: int = 256
    cache_bytes: int = 0
    cuda_graphs: int = 0


DEFAULTS = EngineOptions()
TRAINING = EngineOptions(precision=None)  # ranks with weights that are being trained
