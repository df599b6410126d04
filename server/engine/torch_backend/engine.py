"""The torch engine: exact trie-constrained beam search at about the cost of one forward pass (DESIGN §7).

The beams of a request are *query positions* of its one sequence (tree attention): each new position
attends to the prompt, to its ancestors and to itself. The prompt's keys and values are stored and
read once; after it come L − 1 decode passes or fewer (`search`), and there is no stop condition. Requests of
different lengths share a pass without padding (`attention`), and what is known of a prompt is not computed
again (`prefix_cache`). A pass may mix prompts and beams, so that requests can join while others are being ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from index.bundle.bundle import Bundle, BundleInfo, load_model
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.beam import best_items
from server.engine.contract import EngineError, Outcome, Ranking, RankRequest, rank_at_once
from server.engine.torch_backend.backbone import backbone_of
from server.engine.torch_backend.head import Head
from server.engine.torch_backend.out_of_memory import is_out_of_memory
from server.engine.torch_backend.packed import Precision, dtype_of
from server.engine.torch_backend.prefix_cache import BLOCK, PrefixCache
from server.engine.torch_backend.running import Running, Stopwatch, given_up
from server.engine.torch_backend.search import SPARE, Search, last_of

Device = Literal["cpu", "cuda"]
Kind = Literal["torch", "vllm"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """threads: of torch; 0 for its own choice. max_batch_tokens: prompt and beam positions of the requests that are
    ranked together; others wait until some are done. join_rows: tokens of a pass, up to which new requests join others
    that have begun before; codes that are fed ahead with their prompts come on top. cache_bytes: of keys and values of
    earlier prompts to keep; 0 while the weights still change. precision: of weights, keys and values; with int8 the
    linear layers have 8 bits and all else is bfloat16. Scores are summed in float64. device: cuda is the current GPU.
    cuda_graphs: of passes of codes, to keep there; 0 for none. kind: which engine, see `open_engine`."""

    threads: int = 0
    max_batch_tokens: int = 16384
    join_rows: int = 256
    cache_bytes: int = 0
    precision: Precision = "float32"
    device: Device = "cpu"
    cuda_graphs: int = 32
    kind: Kind = "torch"

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.precision)


DEFAULTS = EngineOptions()


class TorchEngine:
    """Ranks with a Hugging Face causal language model, or with a T5.

    normalisation: `level` or `vocabulary`, see `BundleInfo`.
    living: slots of the items that are not removed; None for all.
    packed: to work with a copy of the weights in this precision, laid out for speed; None to read the model's own
    weights, which may change between calls.
    max_batch_tokens, join_rows, cache_bytes: see `EngineOptions`.
    graphs: how many shapes of passes of codes to keep, padded (`graphs`), with packed weights of decoder-only models;
    0 for none. On a GPU that spares time; on a CPU it only costs.
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
        join_rows: int = 256,
        living: SlotSet | None = None,
        packed: Precision | None = None,
        cache_bytes: int = 0,
        graphs: int = 0,
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
        self.join_rows = join_rows
        self._positions = int(getattr(model.config, "max_position_embeddings", 2**31))
        self._head = Head(model.get_output_embeddings().weight, vocabulary, normalisation, packed)
        self._backbone = backbone_of(model, vocabulary, packed, graphs, max_batch_tokens)
        self.cache = PrefixCache(cache_bytes if self._backbone.prefixes else 0)

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions = DEFAULTS) -> TorchEngine:
        """In this process; `options.threads` is for processes that the engine has for itself."""
        return cls.load(bundle.path, bundle.info, bundle.index.trie, bundle.index.living, options)

    @classmethod
    def load(
        cls, path: Path, info: BundleInfo, trie: Trie, living: SlotSet | None, options: EngineOptions
    ) -> TorchEngine:
        """The weights of the bundle at `path` with a version of its index. info: of that bundle.

        Raises `EngineError` also where they do not fit the memory.
        """
        try:
            return cls(
                on_device(load_model(path, options.dtype), options.device),
                trie,
                info.vocabulary(),
                normalisation=info.normalisation,
                max_batch_tokens=options.max_batch_tokens,
                join_rows=options.join_rows,
                living=living,
                packed=options.precision,
                cache_bytes=options.cache_bytes,
                graphs=options.cuda_graphs if options.device == "cuda" else 0,
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise EngineError(f"the model does not fit the memory: {error}") from error

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`. Scores are log p(identifier | prompt)."""
        return rank_at_once(self, requests)

    @torch.inference_mode()
    def serve(
        self,
        requests: Mapping[int, RankRequest],
        arrivals: Callable[[], Mapping[int, RankRequest]],
        answered: Callable[[Mapping[int, Outcome]], None],
    ) -> None:
        """See `StepwiseEngine.serve`."""
        waiting = dict(requests)
        running: dict[int, Running] = {}
        while True:
            waiting |= arrivals()
            if not waiting and not running:
                return
            watch = Stopwatch()
            outcomes = given_up(waiting, running) | self._begin_some(waiting, running)
            try:
                if running:
                    self._step(list(running.values()), watch)
                for number in [number for number, each in running.items() if each.search.done]:
                    outcomes[number] = self._ranking(running[number])
                    del running[number]
            except Exception as error:
                outcomes |= dict.fromkeys(running, error)
                running.clear()
            self._free_memory(outcomes)
            if outcomes:
                answered(outcomes)

    def _begin_some(self, waiting: dict[int, RankRequest], running: dict[int, Running]) -> dict[int, Outcome]:
        """Move requests from `waiting` to `running`, in order of arrival, as far as there is room. Those that cannot be
        begun are returned."""
        failed: dict[int, Outcome] = {}
        for number, request in list(waiting.items()):
            room = self._room(request, [each.search for each in running.values()])
            if not room:
                break
            known = self.cache.longest(request.prompt)  # asked anew after each step: it may be known by now
            if len(request.prompt) - (0 if known is None else known.shape[3]) > room:
                break
            del waiting[number]
            try:
                running[number] = Running(self._begin(request, known))
            except Exception as error:
                failed[number] = error
        return failed

    def _room(self, request: RankRequest, searches: Sequence[Search]) -> int:
        """How many tokens of its prompt a request may compute beside these searches. It may join those that have begun
        before only if their next pass stays small: they would wait for a large one."""
        if not searches:
            return len(request.prompt)
        asked = [request, *(search.request for search in searches)]
        if sum(map(self._positions_of, asked)) > self.max_batch_tokens:
            return 0
        if all(search.level == 0 for search in searches):
            return len(request.prompt)
        return max(0, self.join_rows - sum(search.next_rows for search in searches))

    def _positions_of(self, request: RankRequest) -> int:
        """Of its prompt and its beams, at most."""
        return len(request.prompt) + (request.width + SPARE) * (self.vocabulary.levels - 1)

    def _begin(self, request: RankRequest, known: Tensor | None) -> Search:
        allowed = request.allowed or self.everything
        request.check_fits(allowed, self.vocabulary.levels, self._positions)
        return self._backbone.search(request, allowed, self.vocabulary, known)

    def _step(self, running: Sequence[Running], watch: Stopwatch) -> None:
        """One forward pass for all, and a level or more for each."""

        def log_probs(hidden: Tensor, level: int) -> NDArray[np.float32]:
            watch.lap("trie")
            found = self._head.log_probs(hidden, level)
            watch.lap("head")
            return found

        searches = [each.search for each in running]
        feeds = [search.feed() for search in searches]
        hidden = self._backbone.forward([feed for those in feeds for feed in those])
        stage_of = ["decode" if search.level else "prefill" for search in searches]
        if self.cache.capacity:
            for search in searches:
                if search.level == 0:
                    self._remember(search)
        watch.lap("forward")
        rows = torch.split(hidden, [sum(feed.segment.rows for feed in those) for those in feeds])
        for search, those, part in zip(searches, feeds, rows, strict=True):
            search.take(last_of(those, part), log_probs, len(searches))
            watch.lap("trie")
        for each, stage in zip(running, stage_of, strict=True):
            each.seconds[stage] += watch.seconds["forward"]
            each.seconds["head"] += watch.seconds["head"]
            each.seconds["trie"] += watch.seconds["trie"]

    def _remember(self, search: Search) -> None:
        request = search.request
        kept = len(request.prompt) if request.history is None else request.history
        if kept - search.cached_tokens >= BLOCK:  # less is sooner computed again than copied
            self.cache.put(request.prompt[:kept], search.memory.prefix(kept))

    def _free_memory(self, outcomes: dict[int, Outcome]) -> None:
        """Where memory ran out: give back what can be had again, so that the next requests find room.

        The errors are replaced, because their tracebacks hold the tensors of what has failed.
        """
        failed = [n for n, each in outcomes.items() if isinstance(each, Exception) and is_out_of_memory(each)]
        if not failed:
            return
        said = str(outcomes[failed[0]]).splitlines()[0][:200]
        outcomes |= dict.fromkeys(
            failed, EngineError(f"not enough memory for what was ranked together: {said}")
        )
        self.cache.clear()
        torch.cuda.empty_cache()  # nothing where CUDA was not used

    def _ranking(self, running: Running) -> Ranking:
        search = running.search
        items, scores = best_items(search.beam, search.allowed, search.request.limit)
        return Ranking(items, scores, running.seconds, search.cached_tokens)


def on_device(model: PreTrainedModel, device: Device) -> PreTrainedModel:
    """The model there. Raises `EngineError` where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("no GPU is there that this torch can use; choose the device cpu")
    return model.to(device)
