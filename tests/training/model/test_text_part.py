"""Item rows with a part of the text: the same model at first, true gradients, and plain weights afterwards."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from support.bundles import make_model
from support.t5 import make_t5
from support.walks import make_data, settings
from transformers import PreTrainedModel

from index.bundle.bundle import Bundle
from index.sequence.events import Task
from index.sequence.vocabulary import IdentifierVocabulary
from training.fit import fit
from training.loop.batches import Batch
from training.loop.losses import item_losses
from training.loop.parts import Part
from training.loop.trainer import Trainer, TrainingError
from training.methods.registry import make_method
from training.model import text_part
from training.model.rows import AddedRows
from training.model.text_part import TextPart, maps_of
from training.pipeline import train

KNOWN, ITEMS, WIDTH = 50, 12, 5
VOCABULARY = IdentifierVocabulary(KNOWN, (ITEMS,))
FIRST = int(VOCABULARY.first_code[0])
VECTORS = np.random.default_rng(0).normal(2, 1, (ITEMS, WIDTH)).astype(np.float32)
MODELS = ["llama", "gpt-neox", "v1.0", "v1.1"]  # tied and untied, decoder-only and T5


def make(kind: str) -> PreTrainedModel:
    return make_t5(VOCABULARY.size, kind) if kind.startswith("v") else make_model(VOCABULARY.size, kind)


def a_part(kind: str) -> Part:
    """Return sequences with items as targets and among what comes before them."""
    rng = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(0, KNOWN, shape, generator=rng)

    def items(*shape: int) -> torch.Tensor:
        return FIRST + torch.randint(0, ITEMS, shape, generator=rng)

    ids = tokens(3, 12)
    ids[:, [3, 8]] = items(3, 2)
    level = torch.full((3, 12), -1, dtype=torch.int8)
    level[:, [3, 8]] = 0
    task = torch.zeros(3, 12, dtype=torch.int8)
    task[:, 6:] = 1
    part = Part(ids, level, task, torch.full(ids.shape, -1))
    if not kind.startswith("v"):
        return part
    prompt = tokens(3, 7)
    prompt[:, [1, 4]] = items(3, 2)
    return Part(ids, level, task, part.item, prompt, torch.ones(3, 7, dtype=torch.bool))


def total(
    model: PreTrainedModel,
    part: Part,
    normalisation: str = "level",
    rows: AddedRows | None = None,
    text: TextPart | None = None,
) -> torch.Tensor:
    with nullcontext() if text is None else text.added():
        return torch.stack(
            list(item_losses(model, VOCABULARY, part, normalisation, rows, text).values())
        ).sum()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
@pytest.mark.parametrize("frozen", [False, True])
def test_losses_and_gradients_are_those_of_whole_rows(kind: str, normalisation: str, frozen: bool) -> None:
    plain, divided = make(kind), make(kind)
    text = TextPart(divided, FIRST, VECTORS)
    rows = None
    if frozen:
        divided.requires_grad_(False)
        rows = AddedRows(divided, KNOWN)
        for each in maps_of(divided):
            each.requires_grad_(True)
    expected = total(plain, a_part(kind), normalisation)
    found = total(divided, a_part(kind), normalisation, rows, text)
    assert torch.allclose(found, expected, rtol=1e-5)
    expected.backward()
    found.backward()
    tables = [plain.get_input_embeddings().weight, plain.get_output_embeddings().weight]
    assert len(maps_of(divided)) == (1 if tables[0] is tables[1] else 2)
    for each, table in zip(maps_of(divided), tables, strict=False):
        of_items = table.grad[FIRST : FIRST + ITEMS]
        torch.testing.assert_close(each.grad, of_items.T @ text.vectors, rtol=1e-3, atol=1e-5)  # chain rule
        assert each.grad.abs().sum() > 0
    owns = rows.parameters if rows else [divided.get_input_embeddings().weight]
    of_added = owns[0].grad if rows else owns[0].grad[KNOWN:]
    torch.testing.assert_close(of_added, tables[0].grad[KNOWN:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_folded_tables_are_what_training_reads_and_come_back_bit_for_bit(kind: str) -> None:
    model = make(kind)
    text = TextPart(model, FIRST, VECTORS)
    with torch.no_grad():
        for each in maps_of(model):
            each.normal_()
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [table.detach().clone() for table in tables]
    expected = total(model, a_part(kind), text=text)
    with text.folded():
        assert torch.allclose(total(model, a_part(kind)), expected, rtol=1e-5)
        assert not torch.equal(tables[0], before[0])
    for table, kept in zip(tables, before, strict=True):
        assert torch.equal(table, kept)
    text.finish(model)
    assert torch.allclose(total(model, a_part(kind)), expected, rtol=1e-5)
    assert set(model.state_dict()) == set(make(kind).state_dict())
    assert maps_of(model) == []
    assert not any(module._forward_hooks for module in model.modules())


def test_vectors_far_from_zero_and_long_ones_do_no_harm() -> None:
    plain, far, long = make("llama"), make("llama"), make("llama")
    few = VECTORS - VECTORS.mean(0)
    few[:, 2:] = 0  # vectors of two dimensions
    maps = [TextPart(plain, FIRST, few).maps[0], TextPart(far, FIRST, few + 100).maps[0]]
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-2, atol=1e-3)
    few[3] *= 1e6
    text = TextPart(long, FIRST, few)
    sums = text.vectors.abs().sum(1)
    assert sums.mean() == pytest.approx(1)
    assert sums.max() < 4
    same = TextPart(make("llama"), FIRST, np.ones_like(few))
    assert not same.vectors.any()
    assert not same.maps[0].any()


@pytest.mark.parametrize("method", ["full", "pcgrad", "gems", "subspace", "lora", "lora-moe"])
def test_every_method_trains_the_maps_of_a_pretrained_backbone(method: str) -> None:
    model = make("llama")
    text = TextPart(model, FIRST, VECTORS)
    before = text.maps[0].detach().clone()
    config = settings({"method": method, "backbone": {"name": "pretrained"}, "knowledge.null_space": False})
    tuning = make_method(model, config, KNOWN)
    with text.added():
        losses = item_losses(model, VOCABULARY, a_part("llama"), "level", tuning.rows, text)
    tuning.backward(losses, dict.fromkeys(Task, 0.5))
    tuning.step(1e-2)
    assert not torch.equal(text.maps[0], before)


def test_rates_that_follow_the_size_of_a_weight_have_whole_rows(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    config = settings(ATOMIC, {"method": "full", "optimiser.relative": True})
    trained = fit(data, tmp_path / "run", config, console=Console(quiet=True))
    assert trained is not None
    (weights,) = (tmp_path / "run" / "best").glob("*/weights.safetensors")
    assert not [name for name in load_file(weights) if text_part.NAME in name]


ATOMIC = {"identifiers.scheme": "atomic", "optimiser.epochs": 3}


@pytest.mark.parametrize("method", ["gems", "full"])
def test_a_trained_bundle_has_plain_weights(method: str, tmp_path: Path) -> None:
    config = settings(ATOMIC, {"method": method})
    bundle = train(make_data(tmp_path / "data"), tmp_path / "run", config, console=Console(quiet=True))
    assert bundle is not None
    with safe_open(bundle / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert not [name for name in names if text_part.NAME in name]
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line["validation"] for line in found if "validation" in line][-1]
    recorded = Bundle.open(bundle).info.training["validation"]
    assert recorded["search.loss"] == pytest.approx(last["search.loss"], rel=1e-4)  # of the sums, as it was


def test_training_begins_at_the_same_place_and_goes_another_way(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    losses = []
    for name, divided in (("with", True), ("without", False)):
        change = {"identifiers.text_part": divided}
        train(data, tmp_path / name, settings(ATOMIC, change), console=Console(quiet=True))
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["search.loss"] for line in lines if "search.loss" in line])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    assert losses[0][-1] != losses[1][-1]


def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(tmp_path / "data")
    config = settings(ATOMIC)
    expected = train(data, tmp_path / "whole", config, console=Console(quiet=True))
    step = Trainer._step

    def interrupted(trainer: Trainer, position: str, batch: Batch) -> dict[str, Any]:
        if trainer.progress.step == 5:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, position, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(TrainingError, match="resume"):
            train(data, tmp_path / "run", config, console=Console(quiet=True))
    found = train(data, tmp_path / "run", config, resume=True, console=Console(quiet=True))
    assert expected is not None
    assert found is not None
    ours, theirs = (load_file(bundle / "model.safetensors") for bundle in (expected, found))
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []
