"""Groups of training settings of the tuning methods. Field descriptions are help texts.

The names in `gems`, and `energy` and `cap` in `knowledge`, are those of the parameters of `gems.GEMS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from training.settings import SettingsGroup


class GemsSettings(SettingsGroup):
    """Subspaces of the method 'gems'; 'subspace' uses the shared one."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("rank", "rank_share"),
        ("task_rank", "task_rank_share"),
    )

    rank: int | None = Field(
        None, ge=1, description="shared subspace: number of directions (in place of rank_share)"
    )
    rank_share: float | None = Field(
        0.25, gt=0, le=1, description="shared subspace: directions as a share of a layer's smaller size"
    )
    task_rank: int | None = Field(
        None,
        ge=1,
        description="subspace of each task: number of directions (default: half of the shared one)",
    )
    task_rank_share: float | None = Field(
        None, gt=0, le=1, description="subspace of each task: directions as a share of a layer's smaller size"
    )
    output_bases: bool = Field(
        False,
        description="layers with more outputs than inputs: bases of outputs (less state; no null space)",
    )
    share_bases: bool = Field(
        False, description="one basis for layers that read the same input (queries, keys, values): less state"
    )
    scale: float = Field(1.0, gt=0, description="factor on the length of subspace updates")
    rank_scaling: bool = Field(
        False, description="lengthen a subspace update by sqrt(size / rank), to the length of Adam's"
    )
    growth_limit: float | None = Field(
        None, gt=1, description="a subspace update grows by at most this factor a step"
    )
    refresh_every: int = Field(200, ge=1, description="steps between refreshes of a layer's subspaces")
    stagger: int = Field(10, ge=1, description="groups of layers that take turns to refresh")
    transport: bool = Field(True, description="move Adam's moments to the new bases at a refresh")
    multi_subspace: bool = Field(True, description="a subspace for each task in addition to the shared one")
    deflate: bool = Field(True, description="task subspaces complement the shared one")
    joint: bool = Field(
        True, description="gradients of each task at refreshes only, the joint one in between: cheaper"
    )
    gate: Literal["uniform", "prior", "hypergradient"] = Field(
        "uniform", description="weighting of the tasks' updates"
    )
    temperature: float = Field(1.5, gt=0, description="softmax temperature of the gate")

    @model_validator(mode="before")
    @classmethod
    def _count_or_share(cls, settings: Any) -> Any:
        """Drop the default share if a count is given."""
        if isinstance(settings, dict) and settings.get("rank") is not None and "rank_share" not in settings:
            return settings | {"rank_share": None}
        return settings

    @field_validator("rank", "task_rank", mode="before")
    @classmethod
    def _whole(cls, count: Any, info: ValidationInfo) -> Any:
        if isinstance(count, float):
            raise ValueError(
                f"{count} is no count of directions; write {info.field_name}_share for a share of the smaller size"
            )
        return count

    @model_validator(mode="after")
    def _one_of_each(self) -> GemsSettings:
        for count, share in self.alternatives:
            if getattr(self, count) is not None and getattr(self, share) is not None:
                raise ValueError(f"give {count} or {share}, not both")
        if self.share_bases and self.output_bases:
            raise ValueError("layers that read the same input share bases of inputs: drop output_bases")
        if self.rank is None and self.rank_share is None:
            raise ValueError("give rank (a count of directions) or rank_share (a share of the smaller size)")
        return self


class KnowledgeSettings(SettingsGroup):
    """Knowledge that 'gems' leaves alone: of a pretrained backbone, or of the model that a training goes on from."""

    null_space: bool = Field(
        True, description="leave the directions of known inputs alone (from scratch there are none)"
    )
    source: Literal["text", "histories"] = Field(
        "text",
        description="known inputs: those on general text, or (with --from) those of the last model on old histories",
    )
    histories: Path | None = Field(
        None,
        description="'histories': data set with old histories (default: those of the data set that is trained)",
    )
    basis: Path | None = Field(
        None, description="file with a knowledge basis of this backbone (default: collect one)"
    )
    energy: float = Field(0.9, gt=0, le=1, description="share of the known inputs' energy that is left alone")
    cap: float = Field(
        0.5, gt=0, lt=1, description="largest share of a layer's input directions that is left alone"
    )
    softness: float | None = Field(
        None,
        gt=0,
        description="soft null space: updates shrink by (1 + energy / (softness * mean energy))^-1/2",
    )
    tokens: int = Field(65536, ge=256, description="tokens of text or histories for the knowledge basis")


class LoraSettings(SettingsGroup):
    """Adapters of the methods 'lora' and 'lora-moe'."""

    rank: int = Field(32, ge=1, le=16384, description="rank of an adapter")
    alpha: float = Field(64, gt=0, description="adapters are scaled by alpha / rank")
    experts: int = Field(4, ge=1, le=1024, description="'lora-moe': experts of a layer")
    layers: Literal["blocks", "feed-forward"] = Field(
        "blocks", description="every linear layer of the blocks, or those of feed-forward parts (as LoRAMoE)"
    )
    balance: float = Field(
        0.0,
        ge=0,
        description="'lora-moe': weight of the localised balance loss, which divides the experts by kind",
    )
    delta: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="'lora-moe': how far the balance loss moves a sample to the half of its kind",
    )

    @model_validator(mode="after")
    def _halves(self) -> LoraSettings:
        if self.balance and self.experts % 2:
            raise ValueError(
                f"lora.balance needs two halves of experts, and lora.experts is {self.experts}: even it"
            )
        return self
