"""A model whose blocks are spread over the processes of a training (FSDP2), beside a whole one of the main process."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gems.weights.shards import prepare_sharded
from training.config import TrainConfig
from training.errors import UserError
from training.run.parallel import Parallel

# their weights outside of the blocks are no plain ones, which the whole model that is validated could have
WITHOUT = {"lora-moe": "its experts are no plain weights, which the model that is validated would need"}


class ShardedModel:
    """Two models with the same weights: one that is trained, and one that ranks, is validated and published.

    trained: the weights of its blocks are spread by rows over the processes; the others are on every process.
    whole: the model that it was made of. Only the main process keeps its weights, which `collect` brings up to date.
    mesh: the processes; None if there is one only. It does the same, so that a run may change their number.
    """

    def __init__(self, whole: PreTrainedModel, parallel: Parallel) -> None:
        """Spread a model that is the same on every process. Every process calls it."""
        self.whole = whole
        self._main = parallel.main
        self.trained: PreTrainedModel = copy.deepcopy(whole)
        if not self._main:
            whole.to("meta")
        self.mesh: DeviceMesh | None = None
        if parallel.size == 1:
            return
        self.mesh = init_device_mesh(self.trained.device.type, (parallel.size,))
        kinds = set(self.trained._no_split_modules or ())
        blocks = [module for module in self.trained.modules() if type(module).__name__ in kinds]
        if not blocks:
            raise UserError(f"{type(whole).__name__} does not name its blocks: leave backbone.shard off")
        for block in blocks:
            fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
        prepare_sharded(self.trained)

    @torch.no_grad()
    def collect(self, merged: Iterable[tuple[str, Tensor]] = ()) -> None:
        """Copy the trained weights into the whole model of the main process. Every process calls it.

        merged: weights by name that the trained model has in another form.
        """
        own: dict[str, Tensor] = dict(self.whole.named_parameters())
        for name, parameter in self.trained.named_parameters():
            value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if self._main and name in own:  # not the map of texts, which is folded into the token tables
                own[name].copy_(value)
        for name, value in merged:
            if self._main:
                own[name].copy_(value)


def check_sharding(config: TrainConfig) -> None:
    """Raise `UserError` if these settings cannot be trained in a sharded model."""
    if not config.backbone.shard:
        return
    if config.method in WITHOUT:
        raise UserError(
            f"the method {config.method!r} does not train sharded models: {WITHOUT[config.method]}. Leave "
            "backbone.shard off"
        )
    for name, wrong in (
        ("gems.output_bases on", config.gems.output_bases),
        ("backbone.precision 'bfloat16'", config.backbone.precision == "bfloat16"),
        ("gems.transport off", not config.gems.transport),
    ):
        if wrong:
            raise UserError(f"{name} does not go with backbone.shard; change one of them")
