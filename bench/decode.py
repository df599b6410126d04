"""`python -m bench.decode --json F`: the engine compared with `transformers.generate`, with vLLM and with its floor.

The floor is one plain forward pass over as many tokens as the engine processes: P + W·(L − 1). All run in one process,
on the same backbone (with random embeddings of the codes) and in the same precision. Figures are medians; engine and
floor run in turn. On a shared machine only the ratios count.

`generate` and vLLM normalise over the whole vocabulary; the output layer for it is not a part of the floor. `level_*`
is the engine with `level` normalisation, the default of training and serving. vLLM takes part if it is installed (the
environment of `make test-vllm`); it gets each prompt once, because it caches prompts.

Two more figures use `level`: a batch of eight prompts of different lengths, compared with the sum of their floors; and
the second request of a history, compared with the first, which fills the prefix cache.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from bench.clock import in_turn, milliseconds
from bench.untrained import publish_untrained
from index.bundle.bundle import Bundle
from index.sequence.vocabulary import IdentifierVocabulary
from server.engine.contract import Engine, RankRequest
from server.engine.options import EngineOptions, Precision
from server.engine.torch_backend.engine import TorchEngine
from server.engine.torch_backend.packed import dtype_of
from server.engine.torch_backend.prefix_cache import PrefixCache
from training.cli.common.command import run_command
from training.cli.common.numbers import whole_numbers
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json
from training.settings import MOST, MOST_BEAMS, MOST_THREADS

ITEMS = 10_000
BATCH = [(100, 10), (150, 50), (200, 20), (250, 10), (300, 50), (400, 20), (500, 50), (300, 10)]  # P, W


def allowed_tokens(
    vocabulary: IdentifierVocabulary, codes: NDArray[np.int32], prompt: int
) -> Callable[[int, torch.Tensor], list[int]]:
    """Return the catalogue as the function for `prefix_allowed_tokens_fn` of `generate`.

    codes: int32 [N, L].
    prompt: tokens of the prompt.
    """
    children: dict[tuple[int, ...], set[int]] = {}
    for row in vocabulary.tokens(codes).tolist():
        for depth in range(len(row)):
            children.setdefault(tuple(row[:depth]), set()).add(row[depth])
    lists = {prefix: sorted(tokens) for prefix, tokens in children.items()}
    return lambda _, sequence: lists.get(tuple(sequence[prompt:].tolist()), [0])


def generate(model: PreTrainedModel, ids: torch.Tensor, width: int, levels: int, allowed: Any) -> Any:
    """Run constrained beam search of transformers; returns token ids, int64 [width, P + levels]."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=levels,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=None,
        pad_token_id=0,
        prefix_allowed_tokens_fn=allowed,
    )


@dataclass
class Bench:
    """One backbone with a catalogue of random identifiers."""

    model: PreTrainedModel
    engine: TorchEngine
    level: TorchEngine  # the same with `level` normalisation
    vllm: Engine | None
    vocabulary: IdentifierVocabulary
    codes: NDArray[np.int32]

    @classmethod
    def build(cls, folder: Path, backbone: str, layers: int | None, precision: Precision) -> Bench:
        bundle = Bundle.open(
            publish_untrained(
                folder / "bundle",
                items=ITEMS,
                backbone=backbone,
                layers=layers,
                normalisation="vocabulary",
            )
        )
        model = bundle.load_model(dtype_of(precision))
        engine, level = (
            TorchEngine(
                model,
                bundle.index.trie,
                bundle.vocabulary,
                normalisation=normalisation,
                options=EngineOptions(precision=precision),
            )
            for normalisation in ("vocabulary", "level")
        )
        vllm: Engine | None = None
        if importlib.util.find_spec("vllm") and precision != "int8":
            from server.engine.vllm_backend.engine import VllmEngine

            vllm = VllmEngine.open(
                bundle, EngineOptions(engine="vllm", precision=precision, cache_bytes=1 << 30)
            )
        codes = bundle.index.trie.codes().astype(np.int32)
        return cls(model, engine, level, vllm, bundle.vocabulary, codes)

    def random_ids(self, length: int, seed: int = 0) -> torch.Tensor:
        """Return random text tokens, int64 [1, length]."""
        generator = torch.Generator().manual_seed(length + 100_000 * seed)
        return torch.randint(0, self.vocabulary.first_added, (1, length), generator=generator)

    def floor(self, tokens: int) -> Callable[[], Any]:
        """Return a function that runs one plain forward pass over N tokens."""
        ids = self.random_ids(tokens)
        return lambda: self.model.base_model(input_ids=ids, use_cache=False)

    def stages(self, request: RankRequest, repeats: int) -> dict[str, float]:
        """Return the median milliseconds of each stage of the engine with `level` normalisation."""
        seconds = [self.level.rank([request])[0].seconds for _ in range(repeats)]
        return {stage: 1000 * statistics.median(each[stage] for each in seconds) for stage in seconds[0]}

    @torch.inference_mode()
    def batched(self, repeats: int) -> dict[str, Any]:
        """Compare a batch of eight requests with the sum of their floors."""
        levels = self.vocabulary.levels
        requests = [RankRequest(self.random_ids(P)[0].tolist(), W, W) for P, W in BATCH]
        floors = [self.floor(P + W * (levels - 1)) for P, W in BATCH]
        engine, floor = in_turn(
            lambda: self.level.rank(requests), lambda: [floor() for floor in floors], repeats=repeats
        )
        return {"batch": BATCH, "engine_ms": engine, "floor_ms": floor, "ratio_to_floor": engine / floor}

    @torch.inference_mode()
    def prefix_cache(self, P: int, W: int, new: int, repeats: int) -> dict[str, Any]:
        """Compare a new history of P tokens with the same history and `new` more tokens."""
        self.level.cache = PrefixCache(1 << 30)
        seed = 0

        def first() -> None:
            nonlocal seed
            seed += 1
            self.level.rank([RankRequest(self.random_ids(P, seed)[0].tolist(), W, W)])

        def second() -> None:
            ids = [*self.random_ids(P, seed)[0].tolist(), *self.random_ids(new, seed)[0].tolist()]
            cached = self.level.rank([RankRequest(ids, W, W)])[0].cached_tokens
            if cached != P:
                raise RuntimeError(f"{cached} tokens of {P} came from the cache")

        one, two = in_turn(first, second, repeats=repeats)
        self.level.cache = PrefixCache(0)
        return {"P": P, "W": W, "new_tokens": new, "first_ms": one, "second_ms": two, "ratio": two / one}

    @torch.inference_mode()
    def measure(self, P: int, W: int, repeats: int, generate_repeats: int) -> dict[str, Any]:
        """Return figures of engine, floor, `generate` and vLLM for one request of P prompt tokens and W beams."""
        levels = self.vocabulary.levels
        ids = self.random_ids(P)
        request = RankRequest(ids[0].tolist(), W, W)
        engine, level, floor = in_turn(
            lambda: self.engine.rank([request]),
            lambda: self.level.rank([request]),
            self.floor(P + W * (levels - 1)),
            repeats=repeats,
        )
        case = {
            "P": P,
            "W": W,
            "L": levels,
            "engine_ms": engine,
            "level_engine_ms": level,
            "floor_ms": floor,
            "ratio_to_floor": engine / floor,
            "level_ratio_to_floor": level / floor,
            "level_stages_ms": self.stages(request, repeats),
        }
        if generate_repeats:
            allowed = allowed_tokens(self.vocabulary, self.codes, P)
            found = generate(self.model, ids, W, levels, allowed)
            theirs = milliseconds(
                lambda: generate(self.model, ids, W, levels, allowed), generate_repeats, warm_up=False
            )
            ours = torch.from_numpy(self.vocabulary.tokens(self.codes[self.engine.rank([request])[0].items]))
            case |= {"generate_ms": theirs, "speedup_over_generate": theirs / engine}
            case["identical"] = torch.equal(found[:, P:], ours)
        if self.vllm is not None:
            vllm = self.vllm_ms(self.vllm, P, W, repeats)
            case["vllm_ms"] = vllm
            case["vllm_over_engine"] = vllm / engine
        return case

    def vllm_ms(self, vllm: Engine, P: int, W: int, repeats: int) -> float:
        """Return the median milliseconds of vLLM for a new prompt."""
        seeds = count(1000 * W)
        return milliseconds(
            lambda: vllm.rank([RankRequest(self.random_ids(P, next(seeds))[0].tolist(), W, W)]), repeats
        )


def main(
    json_file: JsonFile = None,
    backbone: Annotated[str, typer.Option(help="as in 'gems train'")] = "smollm2-135m",
    layers: Annotated[int | None, typer.Option(min=1, max=1000, help="keep the first N layers")] = None,
    prompts: Annotated[str, typer.Option(help="prompt lengths P")] = "100,300,1000",
    widths: Annotated[str, typer.Option(help="beam widths W")] = "10,20,50",
    repeats: Annotated[int, typer.Option(min=1, max=MOST, help="timed runs of engine and floor")] = 5,
    generate_repeats: Annotated[
        int, typer.Option(min=0, max=MOST, help="timed runs of generate; 0 leaves it out")
    ] = 1,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads")] = 2,
    precision: Annotated[
        Precision, typer.Option(help="of the engine; the floor of int8 is in bfloat16")
    ] = "bfloat16",
) -> None:
    """Time one request for every prompt length and beam width."""
    prompt_lengths, beam_widths = whole_numbers(prompts), whole_numbers(widths, most=MOST_BEAMS)
    torch.set_num_threads(threads)
    quiet_libraries()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.build(Path(folder), backbone, layers, precision)
    cases = []
    for P in prompt_lengths:
        for W in beam_widths:
            with console.status(f"P = {P}, W = {W}"):
                cases.append(bench.measure(P, W, repeats, generate_repeats))
    with console.status("a batch of eight; the prefix cache"):
        batched = bench.batched(repeats)
        prefix_cache = bench.prefix_cache(300, 10, 8, repeats)
    kept = "all layers" if layers is None else f"first {layers} layers"
    report = Table(title=f"{backbone}, {kept}, {ITEMS} items, {threads} threads, {precision}")
    columns = [name for name, value in cases[0].items() if not isinstance(value, dict)]
    for column in columns:
        report.add_column(column, justify="right")
    for case in cases:
        values = [case[column] for column in columns]
        report.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values))
    console.print(report)
    console.print(f"eight requests: {batched['ratio_to_floor']:.2f} of the sum of their floors")
    console.print(f"second request of a known history: {prefix_cache['ratio']:.2f} of the first")
    if json_file:
        record = {
            "backbone": backbone, "layers": layers, "items": ITEMS, "threads": threads, "precision": precision,
            "cases": cases, "batched": batched, "prefix_cache": prefix_cache,
        }  # fmt: skip
        write_json(json_file, record)


if __name__ == "__main__":
    run_command(main, "bench.decode")
