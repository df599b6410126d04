"""The trie in vLLM's sampler. Imports vLLM: only where that engine is opened.

vLLM's logits processors are made to push tokens to −inf, and it returns log-probabilities from before or from after
that. The search needs scores from before, of legal tokens only. So `score_legal` replaces a row's logits by them, and
vLLM returns these logits as they are (`logprobs_mode="processed_logits"`).

It has two model runners, each with an interface of its own for logits processors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as RowProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotProcessor

from server.engine.vllm_backend.legal_tokens import LegalTokens, score_legal


class LegalRows(RowProcessor):  # type: ignore[misc]  # vLLM has an environment of its own
    """Processor for the first model runner: legal tokens belong to a row, and move with it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._legal: dict[int, LegalTokens] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(
            self._legal, batch_update, lambda params, *_: LegalTokens.of_args(params.extra_args)
        )

    def apply(self, logits: Tensor) -> Tensor:
        return score_legal(logits, self._legal)


class LegalSlots(SlotProcessor):  # type: ignore[misc]
    """Processor for the second model runner: legal tokens belong to a slot, and the batch maps rows to slots."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self._legal: dict[int, LegalTokens] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        self._legal.pop(req_idx, None)  # of the request that had the slot before
        legal = LegalTokens.of_args(sampling_params.extra_args)
        if legal is not None:
            self._legal[req_idx] = legal
        return legal is not None

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        slots = enumerate(ctx.idx_mapping_np.tolist())  # a row each: nothing is decoded speculatively
        return score_legal(logits, {row: self._legal[slot] for row, slot in slots if slot in self._legal})


def processor_for(vllm_config: Any) -> type:
    """The class that the model runner of this configuration takes."""
    return LegalSlots if vllm_config.use_v2_model_runner else LegalRows
