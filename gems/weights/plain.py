"""The parameters that are not projected: they are tuned by AdamW, with float32 copies where they are less precise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gems.weights.numerics import magnitude
from gems.weights.shards import is_spread, local, plain_rows


class PlainParameters:
    """AdamW over parameters of any floating-point type.

    relative: whether each parameter's rate is multiplied by its magnitude.
    shards: what of each parameter is here.
    An update far below a step of bf16 would be lost by rounding, so such parameters have float32 copies that AdamW
    works on. Of sharded parameters it works on what is here.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], settings: Mapping[str, Any], *, relative: bool
    ) -> None:
        self.parameters = list(parameters)
        self._relative = relative
        self.shards = [plain_rows(p, f"a parameter {tuple(p.shape)}") for p in self.parameters]
        self._copies = {
            k: nn.Parameter(local(p.detach()).float())
            for k, p in enumerate(self.parameters)
            if p.dtype in (torch.bfloat16, torch.float16)
        }
        self._pieces = {
            k: nn.Parameter(local(p.detach()))
            for k, p in enumerate(self.parameters)
            if is_spread(p) and k not in self._copies
        }
        worked_on = [self._copies.get(k, self._pieces.get(k, p)) for k, p in enumerate(self.parameters)]
        groups = [{"params": [p]} for p in worked_on] if relative else worked_on
        self._adamw = torch.optim.AdamW(groups, **settings) if worked_on else None

    @torch.no_grad()
    def step(self, group: Mapping[str, Any]) -> None:
        """Apply an AdamW step with the gradients of the parameters.

        group: the optimizer's parameter group: lr, scale, betas, eps, weight_decay.
        """
        if self._adamw is None:
            return
        for k, copy in self._copies.items():
            parameter, gradient = local(self.parameters[k]), self.parameters[k].grad
            # a weight that was loaded since the last step replaces its copy
            copy.copy_(torch.where(copy.to(parameter.dtype) == parameter, copy, parameter.float()))
            copy.grad = None if gradient is None else local(gradient).float()
        for k, piece in self._pieces.items():
            gradient = self.parameters[k].grad
            piece.data = local(self.parameters[k])  # FSDP2 may have moved it
            piece.grad = None if gradient is None else local(gradient)
        lengths = [1.0] * len(self._adamw.param_groups)
        if self._relative:
            groups = zip(self._adamw.param_groups, self.shards, strict=True)
            lengths = torch.stack([magnitude(g["params"][0], shard) for g, shard in groups]).tolist()
        for own, length in zip(self._adamw.param_groups, lengths, strict=True):
            own["lr"] = group["lr"] * group["scale"] * length
            own |= {name: group[name] for name in ("betas", "eps", "weight_decay")}
        self._adamw.step()
        for k, copy in self._copies.items():
            local(self.parameters[k]).copy_(copy)
        for each in (*self._copies.values(), *self._pieces.values()):
            each.grad = None

    @property
    def adamw(self) -> torch.optim.AdamW | None:
        """The optimizer of the parameters; None without any."""
        return self._adamw

    def tensors(self) -> list[Tensor]:
        """Return the tensors of the state: moments and float32 copies."""
        moments = [] if self._adamw is None else list(self._adamw.state.values())
        return [t for each in moments for t in each.values() if isinstance(t, Tensor)] + list(
            self._copies.values()
        )

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Return the state of each parameter that has one, by its number; of a sharded one, of `DTensor`s."""
        stored = {} if self._adamw is None else self._adamw.state_dict()["state"]
        state = {k: dict(entry) for k, entry in stored.items()}
        for k, copy in self._copies.items():
            state.setdefault(k, {})["copy"] = copy.detach()
        for k, entry in state.items():
            shard = self.shards[k]
            entry |= {name: shard.whole(v, shard.dim) for name, v in entry.items() if name != "step"}
        return state

    def fits(self, state: Mapping[int, Mapping[str, Any]]) -> bool:
        """Whether a state is of parameters of the same shapes and types."""
        return all(k in state and "copy" in state[k] for k in self._copies) and all(
            0 <= k < len(self.parameters)
            and all(
                name == "step" or value.shape == self.parameters[k].shape for name, value in entry.items()
            )
            and ("copy" in entry) == (k in self._copies)
            for k, entry in state.items()
        )

    def load_state_dict(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Restore a state of `state_dict`."""
        if self._adamw is None:
            return
        state = {
            k: {n: v if n == "step" else self.shards[k].own(v, self.shards[k].dim) for n, v in entry.items()}
            for k, entry in state.items()
        }
        with torch.no_grad():
            for k, copy in self._copies.items():
                copy.copy_(state[k]["copy"])
        moments = {k: {n: v for n, v in entry.items() if n != "copy"} for k, entry in state.items()}
        own = self._adamw.state_dict()
        self._adamw.load_state_dict(own | {"state": {k: entry for k, entry in moments.items() if entry}})
