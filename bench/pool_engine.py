"""`python -m bench.pool_engine --json F`: what it costs to score a pool of items besides the beam.

Identifiers are semantic ones as trained bundles have them: two random codes of 256, and a number that separates items
of the same codes. A request of the beam alone writes all three codes. Compared with it, in turn and in one process:

    pool    40 random items besides the beam, and the first two codes only: how the server ranks candidates
    short   the first two codes only, without a pool
    whole   the pool, with all three codes

`limit` is the beam's width, so that no hypothesis is dropped early. Each is measured with a prompt that has to be
computed, and with one whose history of P tokens is in the prefix cache and has 8 new tokens behind it. The backbone is
pretrained, with random embeddings of the codes. Figures are medians; on a shared machine only the ratios count.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.clock import in_turn
from index.identifiers.identifiers import Identifiers
from index.identifiers.schemes.semantic import LEAST_NUMBERS, collision_level
from index.trie.trie import Trie
from server.engine.contract import RankRequest
from server.engine.options import EngineOptions, Precision
from server.engine.torch_backend.engine import TorchEngine
from server.engine.torch_backend.prefix_cache import PrefixCache
from training.cli.common.command import run_command
from training.cli.common.numbers import whole_numbers
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.model.backbones import load_backbone
from training.model.extension import extend_backbone
from training.outputs import write_json
from training.settings import MOST, MOST_BEAMS, MOST_THREADS

CODEBOOK = 256
NEW_TOKENS = 8
KINDS = ("pool", "short", "whole")


def colliding_identifiers(items: int) -> Identifiers:
    """Return identifiers of two random codes, and a number behind them as trained bundles have it."""
    prefixes = np.random.default_rng(0).integers(0, CODEBOOK, (items, 2)).astype(np.int32)
    codes = np.column_stack([prefixes, collision_level(prefixes)])
    sizes = (CODEBOOK, CODEBOOK, max(2 * int(codes[:, 2].max() + 1), LEAST_NUMBERS))
    return Identifiers("semantic", codes, sizes)


def make_engine(items: int, backbone: str, layers: int | None, precision: Precision) -> TorchEngine:
    """Make an engine over colliding identifiers, with random embeddings of their codes."""
    identifiers = colliding_identifiers(items)
    loaded = load_backbone(TrainConfig.combined({"backbone": {"name": backbone, "layers": layers}}), [])
    # A few items are enough to extend the model: the rows of the codes are replaced.
    few = Identifiers("semantic", identifiers.codes[:10], identifiers.codebook_sizes)
    vocabulary = extend_backbone(loaded, few, ["item"] * 10, np.ones((10, 1), np.float32))
    rows = loaded.model.get_input_embeddings().weight
    torch.manual_seed(0)
    with torch.no_grad():
        rows[vocabulary.first_added :].normal_(0, float(rows[: vocabulary.first_added].std()))
    return TorchEngine(
        loaded.model, Trie.build(identifiers.codes), vocabulary, options=EngineOptions(precision=precision)
    )


def measure(engine: TorchEngine, P: int, W: int, pool: int, cached: bool, repeats: int) -> dict[str, Any]:
    """Return the medians of all kinds of requests, and their ratios to the beam alone."""
    levels, items = engine.vocabulary.levels, engine.everything.trie.items
    rng = np.random.default_rng(P)
    ids = rng.integers(0, engine.vocabulary.first_added, P + NEW_TOKENS if cached else P).tolist()
    drawn = rng.choice(items, pool, replace=False).tolist()
    engine.cache = PrefixCache((1 << 30) * cached)
    if cached:
        engine.rank([RankRequest(ids[:P], 1, 1)])
    requests = {
        "alone": RankRequest(ids, W, W),
        "pool": RankRequest(ids, W, W, pool=drawn, levels=levels - 1),
        "short": RankRequest(ids, W, W, levels=levels - 1),
        "whole": RankRequest(ids, W, W, pool=drawn),
    }

    def rank(request: RankRequest) -> None:
        ranking = engine.rank([request])[0]
        if ranking.cached_tokens != P * cached:
            raise RuntimeError(f"{ranking.cached_tokens} tokens of {P} came from the cache")

    taken = in_turn(*(lambda each=each: rank(each) for each in requests.values()), repeats=repeats)
    ms = dict(zip(requests, taken, strict=True))
    case: dict[str, Any] = {"items": items, "cached": cached, "ms": ms}
    return case | {"ratio": {kind: ms[kind] / ms["alone"] for kind in KINDS}}


def main(
    json_file: JsonFile = None,
    backbone: Annotated[str, typer.Option(help="as in 'gems train'")] = "smollm2-135m",
    layers: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="keep the first N layers")
    ] = None,
    items: Annotated[str, typer.Option(help="sizes of the catalogue")] = "10000,1000000",
    prompt: Annotated[int, typer.Option(min=1, max=MOST, help="tokens of the prompt, P")] = 300,
    width: Annotated[int, typer.Option(min=1, max=MOST_BEAMS, help="beam width W")] = 50,
    pool: Annotated[int, typer.Option(min=1, max=MOST_BEAMS, help="items of the pool")] = 40,
    repeats: Annotated[int, typer.Option(min=1, max=MOST, help="timed runs of each kind")] = 9,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads")] = 2,
    precision: Annotated[Precision, typer.Option(help="of the engine")] = "float32",
) -> None:
    """Time each kind of request for every size of the catalogue."""
    torch.set_num_threads(threads)
    quiet_libraries()
    console = Console()
    instructions = torch.backends.cpu.get_cpu_capability()
    cases = []
    for size in whole_numbers(items):
        with console.status(f"{size} items"), torch.inference_mode():
            engine = make_engine(size, backbone, layers, precision)
            for cached in (False, True):
                cases.append(measure(engine, prompt, width, pool, cached, repeats))
    kept = "all layers" if layers is None else f"first {layers} layers"
    report = Table(
        title=f"{backbone}, {kept}, P = {prompt}, W = {width}, a pool of {pool}, {threads} threads, {precision}, "
        f"{instructions}"
    )
    for column in ("items", "prompt", "alone, ms", *(f"{kind} / alone" for kind in KINDS)):
        report.add_column(column, justify="right")
    for case in cases:
        report.add_row(
            f"{case['items']:,}",
            "cached" if case["cached"] else "computed",
            f"{case['ms']['alone']:.0f}",
            *(f"{case['ratio'][kind]:.2f}" for kind in KINDS),
        )
    console.print(report)
    if json_file:
        record = {
            "backbone": backbone, "layers": layers, "P": prompt, "W": width, "pool": pool, "threads": threads,
            "precision": precision, "instructions": instructions, "cases": cases,
        }  # fmt: skip
        write_json(json_file, record)


if __name__ == "__main__":
    run_command(main, "bench.pool_engine")
