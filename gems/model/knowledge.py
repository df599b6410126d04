"""The knowledge basis: the input directions that general text uses at each linear layer.

For a layer with inputs x ∈ R^n on general text, K = Σ x xᵀ. Its top eigenvectors U [n, k] span the inputs that the
layer's knowledge depends on. An update Δ with Δ U = 0 does not change the layer's outputs for these inputs
(docs/gems.md; the same idea, on the input side, in Adam-NSCL, arXiv 2103.07113, and AlphaEdit, arXiv 2410.02355).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gems.model.errors import GemsError
from gems.model.layers import outputs_and_inputs
from gems.model.precision import full_precision
from gems.model.sites import Inputs, call, evaluating, listening, sites_of


class KnowledgeBasis:
    """Eigenvectors and eigenvalues of every input site of a backbone.

    site_of: weight name → site. Layers that read the same input (for example q, k and v) share a site.
    eigenvalues: site → fp64 [n], descending.
    directions: site → fp32 [n, kept]; called only when directions are needed.
    backbone: weight name → fingerprint of the weight at the time of collection.
    tokens: number of inputs in the sums.
    """

    def __init__(
        self,
        site_of: Mapping[str, str],
        eigenvalues: Mapping[str, Tensor],
        directions: Callable[[str], Tensor],
        backbone: Mapping[str, str],
        tokens: int,
    ) -> None:
        self.site_of = dict(site_of)
        self.eigenvalues = dict(eigenvalues)
        self.backbone = dict(backbone)
        self.tokens = tokens
        self._directions = directions

    def size(self, weight: str, energy: float, limit: int) -> int:
        """Return the number of directions that hold the share `energy` of Σ‖x‖², at most `limit`."""
        values = self.eigenvalues[self._site(weight)]
        shares = values.cumsum(0) / values.sum().clamp(min=1e-300)
        needed = int((shares < energy - 1e-12).sum()) + 1 if energy > 0 else 0
        return min(needed, limit)

    def directions(self, weight: str, energy: float, limit: int) -> Tensor:
        """Return U, fp32 [n, k], orthonormal, k = `size(...)`. Raises `GemsError` if fewer directions were kept."""
        site = self._site(weight)
        kept = self._directions(site)
        count = self.size(weight, energy, limit)
        if count > kept.shape[1]:
            raise GemsError(
                f"the knowledge basis keeps {kept.shape[1]} directions of {site}, {count} are asked for; "
                "collect it with a larger `keep`, or ask for less energy or a smaller cap"
            )
        return kept[:, :count]

    def spectrum(self, weight: str) -> tuple[Tensor, Tensor]:
        """Return all directions that were kept, fp32 [n, kept], and all eigenvalues, fp64 [n], descending."""
        site = self._site(weight)
        return self._directions(site), self.eigenvalues[site]

    def check(self, linears: Mapping[str, nn.Module]) -> None:
        """Raise `GemsError` unless the basis was collected on exactly this backbone."""
        for name, linear in linears.items():
            if name not in self.site_of or name not in self.backbone:
                raise GemsError(f"the knowledge basis knows nothing of {name}; it is from another backbone")
            if fingerprint(linear) != self.backbone[name]:
                raise GemsError(
                    f"the knowledge basis was collected on a backbone with other weights in {name}; collect it again"
                )

    def save(self, path: Path) -> None:
        """Write the basis to one safetensors file."""
        tensors = {f"eigenvalues.{site}": values for site, values in self.eigenvalues.items()}
        tensors |= {f"directions.{site}": self._directions(site).contiguous() for site in self.eigenvalues}
        about = {
            "site_of": json.dumps(self.site_of),
            "backbone": json.dumps(self.backbone),
            "tokens": str(self.tokens),
        }
        save_file(tensors, path, metadata=about)

    @classmethod
    def load(cls, path: Path) -> KnowledgeBasis:
        """Open a saved basis; the directions stay on disk until they are needed.

        Raises `GemsError` if the file is not a knowledge basis.
        """
        try:
            file: Any = safe_open(path, framework="pt")
            about = file.metadata() or {}
            site_of = dict(json.loads(about["site_of"]))
            eigenvalues = {site: file.get_tensor(f"eigenvalues.{site}") for site in set(site_of.values())}
            backbone, tokens = dict(json.loads(about["backbone"])), int(about["tokens"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise GemsError(f"{path} is no knowledge basis: {error}") from error
        return cls(site_of, eigenvalues, lambda site: file.get_tensor(f"directions.{site}"), backbone, tokens)

    def _site(self, weight: str) -> str:
        try:
            return self.site_of[weight]
        except KeyError:
            raise GemsError(f"the knowledge basis knows nothing of {weight}") from None


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear.weight, Tensor)
    return linear.weight


def fingerprint(linear: nn.Module) -> str:
    """Return the SHA-256 of the shape, dtype and values of a layer's weight."""
    weight = _weight(linear).detach()
    weight = (
        getattr(weight, "full_tensor", lambda: weight)().contiguous().cpu()
    )  # of all processes, if sharded
    digest = hashlib.sha256(f"{tuple(weight.shape)} {weight.dtype}".encode())
    digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def collect_knowledge(
    model: nn.Module,
    batches: Sequence[Inputs],
    linears: Mapping[str, nn.Module],
    *,
    skip_positions: int = 1,
    keep: float = 0.5,
    sites_at_once: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KnowledgeBasis:
    """Run general text through the model and return the leading input directions of `linears`.

    batches: arguments for calls of the model: keyword arguments, or one tensor. If they have an `attention_mask`
    [B, T], padding does not count.
    skip_positions: number of first tokens of each row that do not count, because transformers use them as attention
    sinks (arXiv 2309.17453). This and the mask apply to inputs [B, T, n].
    keep: share of the n directions that is kept, so that `energy` can be chosen later.
    sites_at_once: number of second moments, n² fp32 each, in memory at a time; a smaller number needs more passes.
    progress: called with (batches done, batches in all).
    Raises `GemsError` if no token counts, a layer is not used, or an activation is not finite.
    """
    if not batches:
        raise GemsError("a knowledge basis needs at least one batch of general text")
    with evaluating(model):
        sites = sites_of(model, batches[0], linears)
        names = list(sites)
        chunk = sites_at_once or len(names)
        starts = range(0, len(names), chunk)
        eigenvalues: dict[str, Tensor] = {}
        directions: dict[str, Tensor] = {}
        tokens = 0
        for turn, start in enumerate(starts):
            chosen = names[start : start + chunk]
            moments = {site: _SecondMoment(linears[sites[site][0]]) for site in chosen}
            with listening({sites[site][0]: moments[site] for site in chosen}, linears):
                for k, batch in enumerate(batches):
                    counted = _counted(batch, skip_positions)
                    for moment in moments.values():
                        moment.counted = counted
                    call(model, batch)
                    if progress:
                        progress(turn * len(batches) + k + 1, len(starts) * len(batches))
            for site, moment in moments.items():
                if moment.tokens == 0:
                    raise GemsError("no token of the general text counts: all are padding or skipped")
                values, vectors = torch.linalg.eigh(moment.total.double())
                kept = max(1, round(keep * len(values)))
                eigenvalues[site] = values.flip(0).clamp(min=0).cpu()
                directions[site] = vectors.flip(1)[:, :kept].float().contiguous().cpu()
                tokens = moment.tokens
    site_of = {weight: site for site, weights in sites.items() for weight in weights}
    backbone = {name: fingerprint(linear) for name, linear in linears.items()}
    return KnowledgeBasis(site_of, eigenvalues, directions.__getitem__, backbone, tokens)


class _SecondMoment:
    """Σ x xᵀ [n, n] in fp32 over the inputs of one layer."""

    def __init__(self, linear: nn.Module) -> None:
        _, n = outputs_and_inputs(linear)
        self.total = torch.zeros(n, n, device=_weight(linear).device)
        self.counted: Tensor | None = None
        self.tokens = 0

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        if self.counted is not None and x.shape[:-1] == self.counted.shape:
            x = x[self.counted.to(x.device)]
        x = x.reshape(-1, x.shape[-1]).float()
        if not bool(torch.isfinite(x).all()):
            raise GemsError("the backbone's activations are not finite on the general text")
        with full_precision([x.device.type]):
            self.total.addmm_(x.T, x)
        self.tokens += len(x)


def _counted(batch: Inputs, skip_positions: int) -> Tensor | None:
    """Return a mask of the tokens that count: bool [B, T], or None if the batch does not show its tokens."""
    if isinstance(batch, Tensor):
        return None
    mask = batch.get("attention_mask")
    if mask is None:
        if "input_ids" not in batch:
            return None
        mask = torch.ones_like(batch["input_ids"])
    return (mask > 0) & (mask.cumsum(1) > skip_positions)
