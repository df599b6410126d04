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
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from index.allowed import Allowed, SlotSet
from index.bundle import Bundle
from index.trie import Trie
from index.vocabulary import IdentifierVocabulary
from server.engine.attention import KeyValues, Segment, flat_attention
from server.engine.beam import best_items
from server.engine.contract import EngineError, Ranking, RankRequest
from server.engine.encoder_decoder import DecoderFeed, EncoderDecoder
from server.engine.prefix_cache import BLOCK, PrefixCache
from server.engine.search import Feed, Search

STAGES = ("prefill", "decode", "head", "trie")
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """threads: of torch; 0 for its own choice. max_batch_tokens: prompt and beam positions of the requests that are
    ranked together; longer lists of requests are split. cache_bytes: of keys and values of earlier prompts to keep;
    0 while the weights still change. precision: of weights, keys and values; scores are summed in float64."""

    threads: int = 0
    max_batch_tokens: int = 16384
    cache_bytes: int = 0
    precision: Precision = "float32"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


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
    max_batch_tokens, cache_bytes: see `EngineOptions`.
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
        cache_bytes: int = 0,
    ) -> None:
        if normalisation not in ("level", "vocabulary"):
            raise EngineError(f"normalisation {normalisation!r} is unknown; level and vocabulary are")
        if trie.levels != vocabulary.levels:
            raise EngineError(
                f"the trie has {trie.levels} levels, the identifier vocabulary {vocabulary.levels}"
            )
        self.model = model.eval()
        self.everything = Allowed.of(trie, living)
        self.vocabulary = vocabulary
        self.normalisation = normalisation
        self.max_batch_tokens = max_batch_tokens
        self._encoder_decoder = EncoderDecoder.of(model)
        # An encoder reads in both directions: nothing that it made of a prompt holds for a longer one.
        self.cache = PrefixCache(0 if self._encoder_decoder else cache_bytes)
        self._positions = int(getattr(model.config, "max_position_embeddings", 2**31))
        self._layers = int(model.config.num_hidden_layers)
        self._body = model.base_model
        self._head: Tensor = model.get_output_embeddings().weight
        if len(self._head) < vocabulary.size:
            raise EngineError(f"the model has {len(self._head)} output rows; {vocabulary.size} are needed")
        if self._encoder_decoder:
            self._encoder_decoder.check(self._head, vocabulary)
        else:
            self._probe()

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions = DEFAULTS) -> TorchEngine:
        """In this process; `options.threads` is for processes that the engine has for itself."""
        return cls(
            bundle.load_model(options.dtype),
            bundle.index.trie,
            bundle.vocabulary,
            normalisation=bundle.info.normalisation,
            max_batch_tokens=options.max_batch_tokens,
            living=bundle.index.living,
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
        if self._encoder_decoder:
            return self._encoder_decoder.search(request, allowed, self.vocabulary)
        known = self.cache.longest(request.prompt)
        return Search(request, allowed, self.vocabulary, self._layers, known)

    def _step(self, searches: Sequence[Search], watch: _Stopwatch) -> None:
        """One forward pass for all, and one level more for each."""
        feeds = [search.feed() for search in searches]
        hidden = self._forward(feeds)
        prompts = [search for search in searches if search.level == 0]
        if self.cache.capacity:
            for search in prompts:
                self._remember(search)
        watch.lap("prefill" if prompts else "decode")
        rows = torch.split(hidden, [feed.segment.rows for feed in feeds])
        for search, part in zip(searches, rows, strict=True):
            log_probs = self._log_probs(part[-1:] if search.level == 0 else part, search.level)
            watch.lap("head")
            search.take(log_probs)
            watch.lap("trie")

    def _forward(self, feeds: Sequence[Feed]) -> Tensor:
        """Hidden states of all tokens that are fed, one request after the other: float [rows, d]."""
        if self._encoder_decoder:
            return self._encoder_decoder.forward(cast("Sequence[DecoderFeed]", feeds))
        with flat_attention(self.model):
            hidden: Tensor = self._body(
                input_ids=torch.cat([feed.ids for feed in feeds]).unsqueeze(0),
                position_ids=torch.cat([feed.positions for feed in feeds]).unsqueeze(0),
                segments=[feed.segment for feed in feeds],
                use_cache=False,
            ).last_hidden_state
        return hidden[0]

    def _remember(self, search: Search) -> None:
        request = search.request
        kept = len(request.prompt) if request.history is None else request.history
        if kept - search.cached_tokens >= BLOCK:  # less is sooner computed again than copied
            self.cache.put(request.prompt[:kept], search.memory.prefix(kept))

    def _log_probs(self, hidden: Tensor, level: int) -> NDArray[np.float32]:
        """log p(code | hypothesis) of every code of a level: [w, d] → float32 [w, codebook]."""
        first, last = self.vocabulary.span(level)
        if self.normalisation == "level":
            logits = (hidden @ self._head[first:last].T).float()
            log_probs = logits.log_softmax(-1)
        else:
            logits = (hidden @ self._head.T).float()
            log_probs = logits[:, first:last] - logits.logsumexp(-1, keepdim=True)
        result: NDArray[np.float32] = log_probs.numpy()
        if not np.isfinite(result).all():
            raise EngineError("the model's scores are not finite; its weights are damaged or have diverged")
        return result

    def _ranking(self, search: Search, watch: _Stopwatch) -> Ranking:
        if not search.done:
            return Ranking([], [], watch.seconds, search.cached_tokens, expired=True)
        items, scores = best_items(search.beam, search.allowed, search.request.limit)
        return Ranking(items, scores, watch.seconds, search.cached_tokens)

    @torch.inference_mode()
    def _probe(self) -> None:
        """Refuse architectures whose forward this engine would not reproduce.

        Some do more than head × hidden (biases, soft caps, scaled logits); some do not attend by segments. Two
        beams that branch after two tokens must equal two plain forward passes.
        """
        name = type(self.model).__name__
        window = getattr(self.model.config, "sliding_window", None)
        if (
            window is not None
            and window < self._positions
            and getattr(self.model.config, "use_sliding_window", True)
        ):
            raise EngineError(f"{name} attends to a window of {window} positions; full attention is needed")
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") in ("dynamic", "longrope"):
            raise EngineError(
                f"{name} turns positions by the length of a pass ({rope['rope_type']} rope), which is that of all "
                "requests together here"
            )
        first, last = self.vocabulary.first_added, self.vocabulary.size - 1
        prompt, branches = [first, last], [last, first]
        plain = [self.model(input_ids=torch.tensor([[*prompt, token]])) for token in branches]
        theirs = torch.cat([output.logits[0, -1:] for output in plain])
        memory = KeyValues(self._layers, 4)
        tree = torch.tensor([[True, True, True, False], [True, True, False, True]])
        try:
            self._forward([Feed(torch.tensor(prompt), torch.arange(2), Segment(memory, 0, 2, None))])
            hidden = self._forward(
                [Feed(torch.tensor(branches), torch.full((2,), 2), Segment(memory, 2, 2, tree))]
            )
        except (TypeError, RuntimeError) as error:
            raise EngineError(f"{name} does not take the engine's tree attention: {error}") from error
        ours = hidden @ self._head.T
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise EngineError(
                f"{name} cannot be served by this engine: its logits are not output rows times hidden state, or "
                "it does not take tree attention"
            )
