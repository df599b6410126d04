"""A process of tests/training/loop/test_sharded_methods.py: it trains with every method, on a model that is sharded.

`python sharded_methods.py RANK WORLD FOLDER` makes steps with each of VARIANTS and writes what process 0 sees of the
whole model to FOLDER/rank{RANK}.pt. With WORLD 1 it is the reference, a process alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gems import load_sharded, load_weights, save_sharded, weights_of
from support.batches import VOCABULARY, source
from support.bundles import make_model
from training.config import TrainConfig
from training.loop.sharding import ShardedModel
from training.loop.trainer import Trainer
from training.methods.registry import make_method
from training.run.parallel import Parallel

VARIANTS: dict[str, dict[str, Any]] = {
    **{
        method: {"method": method}
        for method in ("full", "lora", "pcgrad", "upgrad", "aligned-mtl", "subspace", "gems")
    },
    "frozen rows": {"method": "full", "optimiser.other_weights": "frozen"},
    "relative": {"method": "full", "optimiser.relative": True},
    "again": {"method": "lora", "backbone.activation_checkpointing": True},
}
STEPS = 3


def trained(settings: dict[str, Any], parallel: Parallel, folder: Path) -> dict[str, Any]:
    """Make steps, the last one after a checkpoint was written and read. Return weights and figures."""
    config = TrainConfig.load(
        None, {"optimiser.learning_rate": 1e-2, "gems.refresh_every": 2, "gems.stagger": 1} | settings
    )
    whole = make_model(VOCABULARY.size).double().train()
    sharded = ShardedModel(whole, parallel)
    torch.manual_seed(3)
    method = make_method(sharded.trained, config, VOCABULARY.first_added, parallel=parallel)
    batches = source(title_queries=0.2, seed=1, min_parts=2)
    trainer = Trainer(
        Path(), config, sharded.trained, VOCABULARY, method, batches, validator=None,  # type: ignore[arg-type]
        parallel=parallel, sharded=sharded,
    )  # fmt: skip
    figures = []
    for step, batch in zip(range(STEPS), batches.epoch(0), strict=False):
        if step == STEPS - 1:
            folder.mkdir(exist_ok=True)
            save_sharded(folder, {"model": weights_of(sharded.trained), "method": method.state_dict()})
            parallel.wait()
            state = load_sharded(folder, sharded.mesh)
            load_weights(sharded.trained, state["model"])
            method.load_state_dict(state["method"])
        found = trainer._step("", batch)
        figures.append({k: v for k, v in found.items() if isinstance(v, float)})
    merged = getattr(method, "merged_weights", tuple)
    sharded.collect(merged())
    return {
        "weights": {k: v.clone() for k, v in whole.state_dict().items()} if parallel.main else {},
        "figures": figures,
        "held": method.costs(),
        "spread": sum(type(p).__name__ == "DTensor" for p in sharded.trained.parameters()),
    }


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    parallel = Parallel(rank, world)
    found = {name: trained(settings, parallel, folder / name) for name, settings in VARIANTS.items()}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
