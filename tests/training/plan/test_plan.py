"""A plan compared with what real tensors need, and its rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, GPTNeoXConfig, PreTrainedConfig, Qwen2Config, T5Config, ViTConfig
from typer.testing import CliRunner

from bench.plan import measured_peak, sharded_peak
from training.cli.app import app
from training.config import TrainConfig, recipe_names
from training.model.backbones import BackboneError
from training.plan.backbones import KNOWN, backbone_shape
from training.plan.plan import MOST_SEQUENCES, Need, largest_part, need, plan

ITEMS = 500
SHAPES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(
        vocab_size=2000, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "gpt-neox": GPTNeoXConfig(
        vocab_size=1000, hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        hidden_dropout=0.1, attention_dropout=0.0, tie_word_embeddings=True,
    ),
    "t5": T5Config(
        vocab_size=1000, d_model=96, d_kv=24, d_ff=384, num_layers=2, num_heads=4, decoder_start_token_id=0,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


def settings(folder: Path, shape: str, **changes: Any) -> TrainConfig:
    SHAPES[shape].save_pretrained(folder)
    values = {
        "backbone.name": str(folder),
        "sequence.max_tokens": 256,
        "optimiser.part_tokens": 2048,
        "device": "cpu",
    }
    return TrainConfig.load(
        None, values | {name.replace("__", "."): value for name, value in changes.items()}
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["full", "gems", "lora"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "again"])
def test_planned_bytes_are_those_of_real_tensors(
    shape: str, method: str, again: bool, tmp_path: Path
) -> None:
    config = settings(tmp_path, shape, method=method, backbone__activation_checkpointing=again)
    assert need(config, ITEMS, sequences=8).peak == pytest.approx(measured_peak(config, ITEMS, 8), rel=0.1)


@pytest.mark.parametrize("shape", ["qwen2", "t5"])
@pytest.mark.parametrize("method", ["full", "gems", "lora"])
@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "again"])
def test_planned_bytes_of_each_precision_are_those_of_real_tensors(
    shape: str, method: str, precision: str, again: bool, tmp_path: Path
) -> None:
    if precision == "bfloat16" and (method == "full" or shape == "t5"):
        pytest.skip("refused")
    config = settings(
        tmp_path,
        shape,
        method=method,
        backbone__precision=precision,
        backbone__activation_checkpointing=again,
    )
    planned = need(config, ITEMS, sequences=8).peak
    assert planned == pytest.approx(measured_peak(config, ITEMS, 8), rel=0.1)


@pytest.mark.parametrize(("method", "again"), [("full", True), ("gems", False)])
def test_planned_bytes_of_a_sharded_model_are_those_of_two_processes(
    method: str, again: bool, tmp_path: Path
) -> None:
    config = settings(
        tmp_path, "qwen2", method=method, backbone__shard=True, backbone__activation_checkpointing=again,
        sequence__max_tokens=64,
    )  # fmt: skip
    planned, alone = (need(config, ITEMS, sequences=4, processes=count) for count in (2, 1))
    assert planned.state < 0.8 * alone.state
    assert planned.peak == pytest.approx(sharded_peak(config, ITEMS, 4, 2), rel=0.1)


def test_lower_precisions_need_less(tmp_path: Path) -> None:
    def of(precision: str, method: str) -> Need:
        return need(settings(tmp_path, "qwen2", method=method, backbone__precision=precision), ITEMS)

    for method in ("gems", "lora"):
        full, autocast, bfloat16 = (of(each, method) for each in ("float32", "autocast", "bfloat16"))
        assert full.weights == autocast.weights > bfloat16.weights
        assert full.activations > autocast.activations >= bfloat16.activations
    # what GEMS holds beside its weights makes up for their lower half
    assert bfloat16.state < of("bfloat16", "gems").state
    assert of("bfloat16", "gems").state - of("float32", "gems").state == (
        of("float32", "gems").weights - of("bfloat16", "gems").weights
    )


def test_the_map_of_texts_is_counted(tmp_path: Path) -> None:
    """One map for the tied tables: its gradient and moments, and the vectors of the items."""
    wide, without = (
        need(settings(tmp_path, "qwen2", method="gems", identifiers__text_part=part), ITEMS)
        for part in (True, False)
    )
    assert wide.weights - without.weights == 4 * 128 * 384
    assert wide.peak - without.peak > 4 * 384 * ITEMS


def test_layers_that_are_cut_off_need_nothing(tmp_path: Path) -> None:
    config = settings(
        tmp_path, "qwen2", method="lora", backbone__layers=1, backbone__activation_checkpointing=True
    )
    assert need(config, ITEMS, sequences=1).peak == pytest.approx(measured_peak(config, ITEMS, 1), rel=0.1)


def test_the_sizes_of_a_method_are_its_own(tmp_path: Path) -> None:
    full, gems, lora = (
        need(settings(tmp_path, "qwen2", method=method), ITEMS) for method in ("full", "gems", "lora")
    )
    assert full.weights == gems.weights < lora.weights
    assert full.state == pytest.approx(2 * full.weights, rel=0.01)
    assert full.gradients == full.weights
    assert lora.state < gems.state < full.state
    assert (full.knowledge, lora.knowledge) == (0, 0)
    # half of n directions for each of n inputs, in three blocks
    assert gems.knowledge == 3 * 4 * sum(n * n // 2 for n in (*[128] * 6, 512))
    alone = need(settings(tmp_path, "qwen2", method="full"), ITEMS, processes=1)
    four = need(settings(tmp_path, "qwen2", method="full"), ITEMS, processes=4)
    assert (alone.sent, four.sent) == (0, 2 * 3 * full.gradients // 4)


def test_operations_are_six_for_each_weight_and_token(tmp_path: Path) -> None:
    """Twice a product forward and four times back (Kaplan et al., arXiv 2001.08361); GEMS adds its projections."""
    config = settings(tmp_path, "qwen2", method="full")
    blocks = 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 512)
    products = 6 * blocks * 8 * 256
    assert products < need(config, ITEMS).flops < 1.6 * products  # attention and head
    again = need(
        TrainConfig.combined(config.model_dump(), {"backbone.activation_checkpointing": True}), ITEMS
    )
    assert 1.2 < again.flops / need(config, ITEMS).flops < 1.4


def test_the_largest_part_fits_and_a_larger_one_does_not(tmp_path: Path) -> None:
    config = settings(tmp_path, "qwen2", method="gems")
    memory = need(config, ITEMS, sequences=21).peak
    found = largest_part(config, ITEMS, memory)
    assert 19 <= found <= 21
    assert need(config, ITEMS, sequences=found).peak <= memory
    assert largest_part(config, ITEMS, 1000) == 0
    assert largest_part(config, ITEMS, 10**15) == MOST_SEQUENCES


def test_every_known_shape_can_be_built() -> None:
    billions = {"smollm2-135m": 0.135, "Qwen/Qwen2.5-0.5B-Instruct": 0.494, "Qwen/Qwen2.5-3B-Instruct": 3.086,
                "Qwen/Qwen2.5-7B-Instruct": 7.616, "Qwen/Qwen3-1.7B": 1.721, "google/flan-t5-base": 0.248}  # fmt: skip
    assert billions.keys() == KNOWN.keys()
    for name, size in billions.items():
        model = backbone_shape(TrainConfig.load(None, {"backbone.name": name, "sequence.max_tokens": 512}), 0)
        weights = {id(p): p.numel() for p in model.parameters()}
        assert sum(weights.values()) / 1e9 == pytest.approx(size, rel=0.005), name
    cut = TrainConfig.load(None, {"backbone": {"name": "smollm2-135m", "layers": 4}})
    assert len(backbone_shape(cut, 10).model.layers) == 4
    assert torch.device("meta") == next(model.parameters()).device


def test_a_plan_on_the_command_line(tmp_path: Path) -> None:
    settings(tmp_path / "shape", "qwen2")
    target = tmp_path / "plan.json"
    command = ["plan", "--backbone.name", str(tmp_path / "shape"), "--memory", "0.2", "--method", "gems"]
    said = CliRunner().invoke(
        app, [*command, "--items", "300", "--gpus", "2", "--tflops", "0.1", "--json", str(target)]
    )
    assert said.exit_code == 0, said.output
    assert "largest part" in said.output.replace("\n", " ")
    result = json.loads(target.read_text())
    kept, again = result["rows"]
    assert (kept["method"], kept["activation_checkpointing"], again["activation_checkpointing"]) == (
        "gems",
        False,
        True,
    )
    assert again["peak"] < kept["peak"]
    assert kept["seconds"] == pytest.approx(kept["flops"] / 1e11)
    assert kept["fits"] == (kept["largest"] >= result["sequences"])


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_can_be_planned(recipe: str) -> None:
    config = TrainConfig.load(None, {}, recipe)
    found = need(config, ITEMS, sequences=2)
    assert found.peak > found.weights + found.state > 0


def test_methods_that_the_settings_do_not_suit_are_named(tmp_path: Path) -> None:
    config = settings(tmp_path, "qwen2", method="gems", optimiser__other_weights="subspace")
    found = plan(config, ["full", "gems"], 10, 10**9)
    assert {row["method"] for row in found["rows"]} == {"gems"}
    assert "other_weights" in found["refused"]["full"]


def test_shapes_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    for name, config in (("bart", BartConfig()), ("vit", ViTConfig())):
        config.save_pretrained(tmp_path / name)
        with pytest.raises(BackboneError):
            need(TrainConfig.load(None, {"backbone.name": str(tmp_path / name)}), ITEMS)
    SHAPES["gpt-neox"].save_pretrained(tmp_path / "short")
    long = TrainConfig.load(None, {"backbone.name": str(tmp_path / "short"), "sequence.max_tokens": 4096})
    with pytest.raises(BackboneError, match="context of 2048 positions"):
        need(long, ITEMS)


def test_an_unknown_backbone_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    config = TrainConfig.load(None, {"backbone.name": str(tmp_path / "nothing")})
    with pytest.raises(BackboneError, match=r"is not at hand .*Qwen/Qwen2\.5-3B-Instruct"):
        plan(config, ["full"], 10, 10**9)
