"""`python -m bench.plan --json F`: what `gems plan` says a part needs, beside what real tensors need on the CPU.

SmolLM2-135M whole and cut to four layers, and a T5 of the shape of Flan-T5's smallest, with random weights: only shapes
matter. *planned*: counted on the meta device. *measured*: the most that is alive at a time, by the allocations that
torch's profiler records, plus the moments that AdamW makes in its first step. Neither depends on the processor.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import spawn
from torch.profiler import ProfilerActivity, profile
from transformers import T5Config

from index.sequence.vocabulary import MARKERS, IdentifierVocabulary
from training.cli.common.command import run_command
from training.cli.common.paths import JsonFile
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.loop.losses import item_losses
from training.loop.sharding import ShardedModel
from training.methods.method import NarrowMethod
from training.methods.registry import make_method
from training.model.forward import checkpoint_blocks
from training.model.precision import forward_under
from training.outputs import write_json
from training.plan.backbones import backbone_shape
from training.plan.plan import codebook_sizes, need, part_of, planned_precision, text_part_of
from training.run.parallel import Parallel

ITEMS = 12_101
METHODS = ("gems", "lora", "full")
T5_SMALL: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip


def sharded_peak(config: TrainConfig, items: int, sequences: int, processes: int) -> int:
    """Return the bytes that the main one of several processes needs at most; see `measured_peak`."""
    with tempfile.TemporaryDirectory() as folder:
        config.save(Path(folder) / "config.yaml")
        arguments = (processes, folder, items, sequences)
        spawn(_of_a_process, arguments, nprocs=processes)  # type: ignore[no-untyped-call]
        return int(Path(folder, "peak").read_text("utf-8"))


def _of_a_process(rank: int, world: int, folder: str, items: int, sequences: int) -> None:
    torch.set_num_threads(1)
    quiet_libraries()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    config = TrainConfig.load(Path(folder) / "config.yaml", {})
    peak = measured_peak(config, items, sequences, Parallel(rank, world))
    if rank == 0:
        Path(folder, "peak").write_text(str(peak), "utf-8")
    dist.destroy_process_group()


def measured_peak(config: TrainConfig, items: int, sequences: int, parallel: Parallel | None = None) -> int:
    """Return the bytes that a real model needs at most for a part, on the CPU.

    items: size of the catalogue.
    sequences: of the part.
    parallel: the processes that share a sharded model; every one calls it.
    """
    sizes = codebook_sizes(config, items)
    added = len(MARKERS) + sum(sizes)
    model = backbone_shape(config, added, device="cpu")
    if config.backbone.activation_checkpointing:
        checkpoint_blocks(model)
    first_added = len(model.get_input_embeddings().weight) - added
    weights = sum(p.nbytes for p in model.parameters())
    precision = planned_precision(config)
    vocabulary = IdentifierVocabulary(first_added, sizes)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        if parallel is not None:
            sharded = ShardedModel(model, parallel)
            model = sharded.trained
        text = text_part_of(model, vocabulary, config, items)
        method = make_method(model, config, first_added, parallel=parallel)
        if precision == "bfloat16":
            assert isinstance(method, NarrowMethod)
            method.narrow()
        part = part_of(model, vocabulary, sequences, config.sequence.max_tokens)
        with nullcontext() if text is None else text.added(), forward_under(model, precision):
            losses = item_losses(model, vocabulary, part, config.identifiers.normalisation, method.rows, text)
        method.backward(losses, dict.fromkeys(losses, 1 / len(losses)))
    assert record.profiler is not None
    events = [each for each in record.profiler.kineto_results.events() if each.name() == "[memory]"]
    now: int = weights
    peak: int = weights
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += int(event.nbytes())
        peak = max(peak, now)
    groups = [] if method.adamw is None else method.adamw.param_groups
    later: int = sum(2 * p.nbytes for group in groups for p in group["params"])
    return peak + later


def main(
    json_file: JsonFile = None,
    tokens: Annotated[int, typer.Option(min=48, max=2048, help="tokens of a sequence")] = 256,
    sequences: Annotated[int, typer.Option(min=1, max=64, help="sequences of a part")] = 4,
) -> None:
    """Plan and measure three shapes with three methods."""
    quiet_libraries()
    console = Console()
    table = Table(title=f"a part of {sequences} × {tokens} tokens, GB")
    for name in ("shape", "method", "activations", "planned", "measured", "planned / measured"):
        table.add_column(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        T5Config(**T5_SMALL).save_pretrained(folder)
        shapes = {
            "SmolLM2-135M": ("smollm2-135m", None),
            "SmolLM2-135M, 4 layers": ("smollm2-135m", 4),
            "T5 v1.1 small": (folder, None),
        }
        for shape, (name, layers) in shapes.items():
            for method in METHODS:
                for again in (False, True):
                    config = TrainConfig.load(None, {
                        "backbone": {"name": name, "layers": layers, "activation_checkpointing": again},
                        "method": method, "device": "cpu", "sequence": {"max_tokens": tokens},
                    })  # fmt: skip
                    planned = need(config, ITEMS, sequences=sequences).peak
                    measured = measured_peak(config, ITEMS, sequences)
                    rows.append({
                        "shape": shape, "method": method, "activation_checkpointing": again, "planned": planned,
                        "measured": measured, "ratio": planned / measured,
                    })  # fmt: skip
                    table.add_row(
                        shape, method, "again" if again else "kept", f"{planned / 1e9:.3f}",
                        f"{measured / 1e9:.3f}", f"{planned / measured:.3f}",
                    )  # fmt: skip
    console.print(table)
    if json_file:
        write_json(json_file, {"tokens": tokens, "sequences": sequences, "items": ITEMS, "rows": rows})


if __name__ == "__main__":
    run_command(main, "bench.plan")
