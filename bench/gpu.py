"""`python -m bench.gpu --json F`: what a GPU makes of trainings and rankings; the one script to run where there is one.

It reads nothing from outside: models have random weights. Parts, each saved as soon as it is done, each failing alone:

checks      `gems doctor` on the device
training    seconds of a step, calm and refreshing, of each method against full AdamW; memory, measured and planned;
            tokens a second against a bound by the speed of one large product (6 operations for each weight and token)
engine      seconds of a ranking, with plain passes and with captured graphs

On the CPU (`--device cpu --tiny`) the script runs with a tiny shape, so that it cannot rot. Figures that only a GPU has
are null there, and `device` labels all others.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from index.sequence.vocabulary import MARKERS, IdentifierVocabulary
from index.trie.trie import Trie
from server.engine.contract import RankRequest
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from training.cli.common.command import run_command
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.doctor.checks import device_checks
from training.doctor.machine import machine_facts, speed
from training.loop.losses import item_losses
from training.methods.registry import make_method
from training.model.forward import checkpoint_blocks
from training.model.precision import chosen_precision, forward_under
from training.outputs import write_json
from training.plan.backbones import backbone_shape
from training.plan.plan import codebook_sizes, need, part_of
from training.run.device import chosen_device
from training.settings import DeviceName

METHODS = ("full", "gems", "subspace", "lora")
ITEMS = 10_000
SHAPE = {
    "backbone.name": "Qwen/Qwen2.5-0.5B-Instruct",
    "sequence.max_tokens": 1024,
    "optimiser.part_tokens": 8192,
}
TINY = {
    "backbone.name": "scratch", "backbone.hidden": 32, "backbone.layers": 1, "backbone.text_vocabulary": 300,
    "sequence.max_tokens": 64, "optimiser.part_tokens": 128,
}  # fmt: skip
BEAM, PROMPT = 50, 256
GRAPHS = 16


def settings(shape: dict[str, Any], method: str, device: torch.device) -> TrainConfig:
    """Return the settings of a training with a method. shape: as in `SHAPE`."""
    own = {
        "method": method, "device": device.type, "gems.refresh_every": 1000, "gems.stagger": 1,
        "gems.rank_share": 0.125, "knowledge.null_space": False, "identifiers.codebooks": (256, 256),
        "identifiers.scheme": "semantic",
    }  # fmt: skip
    return TrainConfig.load(None, shape | own)


def step_figures(
    config: TrainConfig, items: int, steps: int, device: torch.device, product: float
) -> dict[str, Any]:
    """Time steps of a training on a device.

    items: size of the catalogue.
    steps: calm ones, after the one that makes the first bases; the median is taken.
    product: operations a second of a large product on the device.
    """
    sizes = codebook_sizes(config, items)
    added = len(MARKERS) + sum(sizes)
    precision = chosen_precision(config, device)
    model = backbone_shape(config, added, device=str(device))
    if config.backbone.activation_checkpointing:
        checkpoint_blocks(model)
    first = len(model.get_input_embeddings().weight) - added
    vocabulary = IdentifierVocabulary(first, sizes)
    method = make_method(model, config, first)
    sequences = max(1, config.optimiser.part_tokens // config.sequence.max_tokens)
    part = part_of(model, vocabulary, sequences, config.sequence.max_tokens)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def step() -> None:
        with forward_under(model, precision):
            losses = item_losses(model, vocabulary, part, config.identifiers.normalisation, method.rows)
        method.backward(losses, dict.fromkeys(losses, 1 / len(losses)))
        method.step(1e-5)

    refreshing = _seconds(step, 1, device)[0]
    calm = statistics.median(_seconds(step, steps, device))
    tokens = sequences * config.sequence.max_tokens
    linear = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    share = 1 / config.gems.refresh_every if config.method in ("gems", "subspace") else 0.0
    return {
        "precision": precision,
        "step_seconds": calm,
        "first_step_seconds": refreshing,
        "refresh_share_of_time": share * max(0.0, refreshing - calm) / calm,
        "tokens_per_second": tokens / calm,
        "share_of_bound": 6 * linear * tokens / product / calm,
        "planned_peak_bytes": need(config, items).peak,
        "measured_peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def engine_figures(config: TrainConfig, items: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time rankings of one request by plain passes, and on a GPU by captured graphs; both give the same items."""
    sizes = codebook_sizes(config, items)
    model = backbone_shape(config, len(MARKERS) + sum(sizes), device=str(device)).eval()
    first = len(model.get_input_embeddings().weight) - len(MARKERS) - sum(sizes)
    vocabulary = IdentifierVocabulary(first, sizes)
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(0, size, items) for size in sizes], axis=1).astype(np.int32)
    trie = Trie.build(codes)
    length = min(PROMPT, config.sequence.max_tokens - len(sizes) - 1)
    request = RankRequest(random.integers(0, first, length).tolist(), limit=10, beam_width=BEAM)
    precision = "bfloat16" if device.type == "cuda" else "float32"
    plain = EngineOptions(device="cuda" if device.type == "cuda" else "cpu", precision=precision)  # type: ignore[arg-type]

    def timed(options: EngineOptions) -> tuple[float, list[int]]:
        engine = TorchEngine(model.to(torch.bfloat16) if precision == "bfloat16" else model, trie, vocabulary,
                             options=options)  # fmt: skip
        answers = [list(engine.rank([request])[0].items)]
        seconds = _seconds(lambda: answers.append(list(engine.rank([request])[0].items)), rounds, device)
        return statistics.median(seconds), answers[-1]

    seconds, items_found = timed(plain)
    found: dict[str, Any] = {
        "beam_width": BEAM, "prompt": length, "precision": precision, "seconds": seconds,
        "captured_seconds": None, "captured_same_items": None,
    }  # fmt: skip
    if device.type == "cuda":
        captured, same = timed(EngineOptions(device="cuda", precision=plain.precision, cuda_graphs=GRAPHS))
        found |= {"captured_seconds": captured, "captured_same_items": same == items_found}
    return found


def _seconds(work: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begin)
    return found


def main(
    json_file: JsonFile = None,
    device: Annotated[DeviceName, typer.Option(help="where to measure")] = "auto",
    tiny: Annotated[bool, typer.Option(help="a tiny shape, to try the script itself")] = False,
    backbone: Annotated[str | None, typer.Option(help="shape of another backbone, see 'gems plan'")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="timed steps of a training")] = 10,
    checkpointing: Annotated[bool, typer.Option(help="blocks compute their activations again")] = True,
) -> None:
    """Measure all parts on one device."""
    quiet_libraries()
    console = Console()
    where = chosen_device(device)
    shape = (TINY if tiny else SHAPE) | ({} if backbone is None else {"backbone.name": backbone})
    shape |= {"backbone.activation_checkpointing": checkpointing}
    items = 300 if tiny else ITEMS
    product = speed(where, torch.bfloat16 if where.type == "cuda" else torch.float32)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU: no figure of a GPU",
        "facts": machine_facts(), "shape": shape, "items": items, "product_flops": product, "failed": {},
        "training": {},
    }  # fmt: skip

    def part(name: str, work: Callable[[], Any], place: dict[str, Any], key: str) -> None:
        try:
            place[key] = work()
        except Exception as error:  # of one part: the others have their figures
            place[key] = None
            found["failed"][name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        finally:
            if where.type == "cuda":
                torch.cuda.empty_cache()
        console.print(name, json.dumps(place[key], indent=1), found["failed"].get(name, ""), highlight=False)
        if json_file is not None:
            write_json(Path(json_file), found)

    part("checks", lambda: device_checks(where), found, "checks")
    for method in METHODS:
        config = settings(shape, method, where)
        part(
            f"training, {method}",
            lambda config=config: step_figures(config, items, steps, where, product),  # type: ignore[misc]
            found["training"],
            method,
        )
    full = found["training"]["full"]
    for figures in found["training"].values():
        if figures and full:
            figures["step_to_full"] = figures["step_seconds"] / full["step_seconds"]
    part(
        "engine", lambda: engine_figures(settings(shape, "full", where), items, steps, where), found, "engine"
    )
    if found["failed"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main, "bench.gpu")
