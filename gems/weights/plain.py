"""The parameters that are not projected: they are tuned by AdamW, with float32 copies where they are less precise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gems.weights.numerics import magnitude


class PlainParameters:
    """AdamW over parameters of any floating-point type.

    relative: whether each parameter's rate is multiplied by its magnitude.
    An update far below a step of bf16 would be lost by rounding, so such parameters have float32 copies that AdamW
    works on.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], settings: Mapping[str, Any], *, relative: bool
    ) -> None:
        self.parameters = list(parameters)
        self._relative = relative
        self._copies = {
            k: nn.Parameter(p.detach().float())
            for k, p in enumerate(self.parameters)
            if p.dtype in (torch.bfloat16, torch.float16)
        }
        worked_on = [self._copies.get(k, p) for k, p in enumerate(self.parameters)]
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
            parameter = self.parameters[k]
            # a weight that was loaded since the last step replaces its copy
            copy.copy_(torch.where(copy.to(parameter.dtype) == parameter, copy, parameter.float()))
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        lengths = [1.0] * len(self._adamw.param_groups)
        if self._relative:
            lengths = torch.stack([magnitude(g["params"][0]) for g in self._adamw.param_groups]).tolist()
        for own, length in zip(self._adamw.param_groups, lengths, strict=True):
            own["lr"] = group["lr"] * group["scale"] * length
            own |= {name: group[name] for name in ("betas", "eps", "weight_decay")}
        self._adamw.step()
        for k, copy in self._copies.items():
            self.parameters[k].copy_(copy)
            copy.grad = None

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
        """Return the state of each parameter that has one, by its number."""
        stored = {} if self._adamw is None else self._adamw.state_dict()["state"]
        state = {k: dict(entry) for k, entry in stored.items()}
        for k, copy in self._copies.items():
            state.setdefault(k, {})["copy"] = copy.detach()
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
        with torch.no_grad():
            for k, copy in self._copies.items():
                copy.copy_(state[k]["copy"])
        moments = {k: {n: v for n, v in entry.items() if n != "copy"} for k, entry in state.items()}
        own = self._adamw.state_dict()
        self._adamw.load_state_dict(own | {"state": {k: entry for k, entry in moments.items() if entry}})
