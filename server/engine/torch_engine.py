"""The torch engine: exact trie-constrained beam search at about the cost of one forward pass (DESIGN §7).

The beams of a request are *query positions* of its one sequence (tree attention): each new position
attends to the prompt, to its ancestors and to itself. The prompt's keys and values are stored and
read once; there are exactly L − 1 decode passes after the prompt's, and no stop condition. Requests of
different lengths share a pass without padding (`attention`), and what is known of a prompt is not computed
again (`prefix_cache`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedModel

from index.allowed import Allowed, SlotSet
from index.bundle import Bundle
from index.trie import Trie
from index.vocabulary import IdentifierVocabulary
from server.engine.backbone import backbone_of
from server.engine.beam import best_items
from server.engine.contract import EngineError, Ranking, RankRequest
from server.engine.head import Head
from server.engine.packed import Precision, dtype_of
from server.engine.prefix_cache import BLOCK, PrefixCache
from server.engine.search import Search

Device = Literal["cpu", "cuda"]
Kind = Literal["torch", "vllm"]
STAGES = ("prefill", "decode", "head", "trie")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """threads: of torch; 0 for its own choice. max_batch_tokens: prompt and beam positions of the requests that are
    ranked together; longer lists of requests are split. cache_bytes: of keys and values of earlier prompts to keep;
    0 while the weights still change. precision: of weights, keys and values; with int8 the linear layers have 8 bits
    and all else is bfloat16. Scores are summed in float64. device: cuda is the current GPU.
    kind: which engine, see `open_engine`."""

    threads: int = 0
    max_batch_tokens: int = 16384
    cache_bytes: int = 0
    precision: Precision = "float32"
    device: Device = "cpu"
    kind: Kind = "torch"

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.precision)


@dataclass(slots=True)
class _Stopwatch:
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


DEFAULTS = EngineOptions()


class TorchEngine:
    """Ranks with a Hugging Face causal language model, or with a T5.

    normalisation: `level` or `vocabulary`, see `BundleInfo`.
    living: slots of the items that are not removed; None for all.
    packed: to work with a copy of the weights in this precision, laid out for speed; None to read the model's own
    weights, which may change between calls.
    max_batch_tokens, cache_bytes: see `EngineOptions`.
    Raises `EngineError` for a model, normalisation or vocabulary that it would get wrong.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: Trie,
        vocabulary: IdentifierVocabulary,
        *,
        normalisation: str = "level",
        max_batch_tokens: int = 16384,
        living: SlotSet | None = None,
        packed: Precision | None = None,
        cache_bytes: int = 0,
    ) -> None:
        if trie.levels != vocabulary.levels:
            raise EngineError(
                f"the trie has {trie.levels} levels, the identifier vocabulary {vocabulary.levels}"
            )
        model.eval()
        self.everything = Allowed.of(trie, living)
        self.vocabulary = vocabulary
        self.normalisation = normalisation
        self.max_batch_tokens = max_batch_tokens
        self._positions = int(getattr(model.config, "max_position_embeddings", 2**31))
        self._head = Head(model.get_output_embeddings().weight, vocabulary, normalisation, packed)
        self._backbone = backbone_of(model, vocabulary, packed)
        self.cache = PrefixCache(cache_bytes if self._backbone.prefixes else 0)

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions = DEFAULTS) -> TorchEngine:
        """In this process; `options.threads` is for processes that the engine has for itself."""
        return cls(
            on_device(bundle.load_model(options.dtype), options.device),
            bundle.index.trie,
            bundle.vocabulary,
            normalisation=bundle.info.normalisation,
            max_batch_tokens=options.max_batch_tokens,
            living=bundle.index.living,
            packed=options.precision,
            cache_bytes=options.cache_bytes,
        )

    @torch.inference_mode()
    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`. Scores are log p(identifier | prompt)."""
        rankings: list[Ranking] = []
        for chunk in self._chunks(requests):
            rankings += self._rank_together(chunk)
        return rankings

    def _chunks(self, requests: Sequence[RankRequest]) -> Iterator[list[RankRequest]]:
        """Split into batches that fit `max_batch_tokens`; one request is always a batch."""
        chunk: list[RankRequest] = []
        tokens = 0
        for request in requests:
            each = len(request.prompt) + request.width * (self.vocabulary.levels - 1)
            if chunk and tokens + each > self.max_batch_tokens:
                yield chunk
                chunk, tokens = [], 0
            chunk.append(request)
            tokens += each
        if chunk:
            yield chunk

    def _rank_together(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        watch = _Stopwatch()
        searches = [self._begin(request) for request in requests]
        while running := [search for search in searches if not search.done and not search.request.expired]:
            self._step(running, watch)
        return [self._ranking(search, watch) for search in searches]

    def _begin(self, request: RankRequest) -> Search:
        allowed = request.allowed or self.everything
        request.check_fits(allowed, self.vocabulary.levels, self._positions)
        known = self.cache.longest(request.prompt)
        return self._backbone.search(request, allowed, self.vocabulary, known)

    def _step(self, searches: Sequence[Search], watch: _Stopwatch) -> None:
        """One forward pass for all, and one level more for each."""
        feeds = [search.feed() for search in searches]
        hidden = self._backbone.forward(feeds)
        prompts = [search for search in searches if search.level == 0]
        if self.cache.capacity:
            for search in prompts:
                self._remember(search)
        watch.lap("prefill" if prompts else "decode")
        rows = torch.split(hidden, [feed.segment.rows for feed in feeds])
        for search, part in zip(searches, rows, strict=True):
            log_probs = self._head.log_probs(part[-1:] if search.level == 0 else part, search.level)
            watch.lap("head")
            search.take(log_probs)
            watch.lap("trie")

    def _remember(self, search: Search) -> None:
        request = search.request
        kept = len(request.prompt) if request.history is None else request.history
        if kept - search.cached_tokens >= BLOCK:  # less is sooner computed again than copied
            self.cache.put(request.prompt[:kept], search.memory.prefix(kept))

    def _ranking(self, search: Search, watch: _Stopwatch) -> Ranking:
        if not search.done:
            return Ranking([], [], watch.seconds, search.cached_tokens, expired=True)
        items, scores = best_items(search.beam, search.allowed, search.request.limit)
        return Ranking(items, scores, watch.seconds, search.cached_tokens)


def on_device(model: PreTrainedModel, device: Device) -> PreTrainedModel:
    """The model there. Raises `EngineError` where there is no such device, or too little memory."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("no GPU is there that this torch can use; choose the device cpu")
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise EngineError(f"the model does not fit the GPU's memory: {error}") from error
