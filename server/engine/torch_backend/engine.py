"""The torch engine: exact trie-constrained beam search at about the cost of one forward pass.

The beams of a request are *query positions* of one sequence (tree attention): each new position attends to the prompt,
to its ancestors and to itself. The prompt's keys and values are stored and read once; L − 1 decode passes or fewer
follow (`search`), and there is no stop condition. Requests of different lengths share a pass without padding
(`attention`), and the cached prefix of a prompt is not computed again (`prefix_cache`). A pass may mix prompts and
beams, so that requests can join while others are being ranked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from index.bundle.bundle import Bundle, BundleInfo, load_model
from index.sequence.events import Task
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import EngineError, Outcome, Ranking, RankRequest
from server.engine.options import DEFAULTS, TRAINING, Device, EngineOptions
from server.engine.step_loop import serve_in_steps
from server.engine.torch_backend.backbone import backbone_of
from server.engine.torch_backend.forward_input import last_of
from server.engine.torch_backend.head import Head
from server.engine.torch_backend.out_of_memory import is_out_of_memory
from server.engine.torch_backend.packed import dtype_of
from server.engine.torch_backend.prefix_cache import BLOCK, PrefixCache
from server.engine.torch_backend.search import SPARE_ROWS, Search
from server.engine.waiting import rank_by_serving


class TorchEngine:
    """Ranks with a Hugging Face causal language model, or with a T5.

    model: any that the engine supports; its logits are compared with the engine's own at the start.
    trie, vocabulary: of the identifiers that it writes.
    normalisation: `level` or `vocabulary`, see `BundleInfo`.
    living: slots of the items that are not removed; None for all.
    searches: items that searches may return, if they write identifiers of their own.
    options: see `EngineOptions`; the default reads the model's own weights, which may change between calls.
    Raises `EngineError` for a model, normalisation or vocabulary that it would get wrong.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: Trie,
        vocabulary: IdentifierVocabulary,
        *,
        normalisation: str = "level",
        living: SlotSet | None = None,
        searches: Allowed | None = None,
        options: EngineOptions = TRAINING,
    ) -> None:
        for levels in (trie.levels, trie.levels if searches is None else searches.trie.levels):
            if levels != vocabulary.levels:
                raise EngineError(
                    f"the trie has {levels} levels, the identifier vocabulary {vocabulary.levels}"
                )
        model.eval()
        self.everything = Allowed.of(trie, living)
        self._searches = self.everything if searches is None else searches
        self.vocabulary = vocabulary
        self.normalisation = normalisation
        self.options = options
        self._positions = int(getattr(model.config, "max_position_embeddings", 2**31))
        self._head = Head(model.get_output_embeddings().weight, vocabulary, normalisation, options.precision)
        self._backbone = backbone_of(model, vocabulary, options)
        self.cache = PrefixCache(options.cache_bytes if self._backbone.prefixes else 0)

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions = DEFAULTS) -> TorchEngine:
        """Load a bundle in this process; `options.threads` is for an engine that has a process to itself."""
        index = bundle.index
        return cls.load(
            bundle.path, bundle.info, index.trie, index.living, options, index.named(Task.SEARCH).everything
        )

    @classmethod
    def load(
        cls,
        path: Path,
        info: BundleInfo,
        trie: Trie,
        living: SlotSet | None,
        options: EngineOptions,
        searches: Allowed | None = None,
    ) -> TorchEngine:
        """Load the weights of the bundle at `path`, with a version of its index.

        info: description of that bundle.
        trie, living: identifiers of the index version, and the slots of its items that are not removed.
        searches: see `TorchEngine`.
        Raises `EngineError` also if the weights cannot be read or do not fit into memory, or the device is not there.
        """
        if options.device == "cpu":
            options = replace(options, cuda_graphs=0)
        try:
            return cls(
                on_device(load_model(path, dtype_of(options.precision)), options.device),
                trie,
                info.vocabulary(),
                normalisation=info.normalisation,
                living=living,
                searches=searches,
                options=options,
            )
        except EngineError:
            raise
        except Exception as error:  # transformers raises whatever settings and weights lead to
            if is_out_of_memory(error):
                raise EngineError(f"the model does not fit the memory: {error}") from error
            raise EngineError(
                f"the model in {path} cannot be opened: {type(error).__name__}: {error}"
            ) from error

    def everything_for(self, task: Task) -> Allowed:
        """Return all living items under the identifiers of a task; see `Engine.everything_for`."""
        return self._searches if task is Task.SEARCH else self.everything

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`. Scores are log p(identifier | prompt)."""
        return rank_by_serving(self, requests)

    def forget(self) -> None:
        """Empty the prefix cache. What is in flight may fill it again."""
        self.cache.clear()

    @torch.inference_mode()
    def serve(
        self,
        requests: Mapping[int, RankRequest],
        arrivals: Callable[[], Mapping[int, RankRequest]],
        on_done: Callable[[Mapping[int, Outcome]], None],
    ) -> None:
        """Rank requests and those that arrive meanwhile; see `StepwiseEngine.serve`."""
        serve_in_steps(self, requests, arrivals, on_done)

    def begin(self, request: RankRequest, running: Sequence[Search]) -> Search | None:
        """Begin a search if there is room next to the running ones; see `step_loop.BackEnd`.

        The prefix cache is asked again in each step: meanwhile the prefix may have been computed.
        """
        began = time.perf_counter()
        room = self._room(request, running)
        if not room:
            return None
        prefix = self.cache.longest(request.prompt)
        if self._first_rows(request) - (0 if prefix is None else prefix.shape[3]) > room:
            return None
        allowed = request.allowed or self.everything
        request.check_fits(allowed, self.vocabulary.levels, self._positions)
        search = self._backbone.search(request, allowed, self.vocabulary, prefix)
        search.seconds["prefill"] += time.perf_counter() - began
        return search

    def step(self, searches: Sequence[Search]) -> None:
        """Compute one forward pass for all searches, and advance each by a level or more."""
        watch = _Stopwatch()

        def log_probs(hidden: Tensor, level: int) -> NDArray[np.float32]:
            watch.lap("trie")
            found = self._head.log_probs(hidden, level)
            watch.lap("head")
            return found

        inputs = [search.next_inputs() for search in searches]
        hidden = self._backbone.forward([each for those in inputs for each in those])
        stage_of = ["decode" if search.level else "prefill" for search in searches]
        if self.cache.capacity:
            for search in searches:
                if search.level == 0:
                    self._remember(search)
        watch.lap("forward")
        rows = torch.split(hidden, [sum(each.segment.rows for each in those) for those in inputs])
        for search, those, part in zip(searches, inputs, rows, strict=True):
            search.take(last_of(those, part), log_probs, len(searches))
            watch.lap("trie")
        for search, stage in zip(searches, stage_of, strict=True):
            search.seconds[stage] += watch.seconds["forward"]
            search.seconds["head"] += watch.seconds["head"]
            search.seconds["trie"] += watch.seconds["trie"]

    def abandon(self, searches: Sequence[Search]) -> None:
        """Do nothing: searches hold nothing but their own tensors."""

    def after_step(self, outcomes: dict[int, Outcome]) -> None:
        """Free memory that can be had again if memory ran out, so that the next requests find room.

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
        torch.cuda.empty_cache()  # does nothing where CUDA was not used

    def _room(self, request: RankRequest, running: Sequence[Search]) -> int:
        """Return how many rows the first pass of a request may have next to the running searches.

        It may join searches that have begun already only if their next pass stays small: a large one delays them.
        """
        if not running:
            return self._first_rows(request)
        together = [request, *(search.request for search in running)]
        if sum(map(self._positions_of, together)) > self.options.max_batch_tokens:
            return 0
        if all(search.level == 0 for search in running):
            return self._first_rows(request)
        return max(0, self.options.join_rows - sum(search.next_rows for search in running))

    def _first_rows(self, request: RankRequest) -> int:
        """Return how many tokens its prompt and its pool have at most, which are computed in its first pass."""
        return len(request.prompt) + len(request.pool) * (request.written(self.vocabulary.levels) - 1)

    def _positions_of(self, request: RankRequest) -> int:
        """Return how many positions its prompt, its beams with their look-ahead, and its pool have at most."""
        levels = self.vocabulary.levels
        return request.positions(levels) + SPARE_ROWS * (request.written(levels) - 1)

    def _remember(self, search: Search) -> None:
        """Put the part of the prompt that later requests may share into the prefix cache."""
        request = search.request
        shared = len(request.prompt) if request.shared_tokens is None else request.shared_tokens
        # Less than a block is sooner computed again than copied.
        if shared - search.cached_tokens >= BLOCK:
            self.cache.put(request.prompt[:shared], search.key_values.prefix(shared))


@dataclass(slots=True)
class _Stopwatch:
    """Seconds of the parts of one step."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("forward", "head", "trie"), 0.0))
    last: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """Count the time since the last lap for this part."""
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


def on_device(model: PreTrainedModel, device: Device) -> PreTrainedModel:
    """Move the model to a device. Raises `EngineError` if there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("no GPU is there that this torch can use; choose the device cpu")
    return model.to(device)
