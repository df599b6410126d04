"""Trainings in float32, under autocast and with bfloat16 weights: what they learn, keep, save and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support import walks
from support.batches import VOCABULARY, source
from support.bundles import make_model, make_tokenizer
from support.t5 import make_t5
from torch import nn
from transformers import PreTrainedModel

from gems import KnowledgeBasis, find_linears
from index.bundle.bundle import Bundle
from training.config import ConfigError, TrainConfig
from training.config.config import NARROW
from training.data.dataset import DataSet
from training.errors import UserError
from training.loop.losses import item_losses
from training.loop.trainer import Trainer
from training.methods.method import NarrowMethod
from training.methods.registry import make_method
from training.model.precision import Precision, forward_under
from training.pipeline import train
from training.plan.plan import part_of
from training.run.run_folder import RunError

QUIET = Console(quiet=True)
PRECISIONS: tuple[Precision, ...] = ("float32", "autocast", "bfloat16")
LOWER = PRECISIONS[1:]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return walks.make_data(tmp_path_factory.mktemp("data") / "walks", users=60)


@pytest.fixture(scope="module")
def backbone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder, whose weights bfloat16 cannot hold."""
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = make_tokenizer(DataSet.load(data).catalogue.texts())
    make_model(len(tokenizer), "llama", positions=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(backbone: Path, precision: str, **changes: Any) -> TrainConfig:
    common = {
        "backbone": {"name": str(backbone), "layers": None, "precision": precision}, "optimiser.epochs": 2,
        "gems.rank_share": 0.25, "gems.refresh_every": 5, "knowledge.tokens": 2048, "lora.rank": 4,
        "identifiers.scheme": "atomic", "validation.conflict_cases": 8,
    }  # fmt: skip
    return walks.settings(common, {name.replace("__", "."): value for name, value in changes.items()})


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["search.loss"] for line in lines if "learning_rate" in line]


def weights_of(bundle: Path) -> dict[str, torch.Tensor]:
    return load_file(bundle / "model.safetensors")


def test_every_precision_learns_the_same_and_gems_leaves_what_is_known_alone(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    curves, moved = {}, {}
    for precision in PRECISIONS:
        run = tmp_path / precision
        bundle = train(data, run, settings(backbone, precision, validation__every=0.5), console=QUIET)
        assert bundle is not None
        curves[precision], published = losses(run), weights_of(bundle)
        assert {each.dtype for each in published.values()} == {torch.float32}
        (path,) = (run / "prepared").glob("knowledge-*.safetensors")
        knowledge = KnowledgeBasis.load(path)
        before = load_file(run / "prepared" / "backbone" / "model.safetensors")
        moved[precision] = {name: published[name] - before[name] for name in knowledge.site_of}
        for name, change in moved[precision].items():
            known = knowledge.directions(name, 0.9, 8)
            leak = float((change @ known).norm() / change.norm())
            # bfloat16 weights alone, without the rest of each number, leak a tenth and more
            assert leak < (1e-3 if precision == "bfloat16" else 1e-5), (precision, name)
    assert curves["float32"][-1] < 0.9 * curves["float32"][0]
    for precision in LOWER:
        assert curves[precision] == pytest.approx(curves["float32"], rel=0.02)
        assert curves[precision] != curves["float32"]
        for name, change in moved[precision].items():
            exact = moved["float32"][name]
            assert float((change - exact).norm()) < 0.5 * float(exact.norm()), (precision, name)


@pytest.mark.parametrize("method", NARROW)
def test_bfloat16_is_for_the_layers_alone_and_the_published_model_is_float32(
    method: str, data: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.dtype]] = []
    plain = Trainer._step

    def step(self: Trainer, *arguments: Any) -> Any:
        seen.append({name: p.dtype for name, p in self.model.named_parameters()})
        seen[-1] |= {"rows": self.method.rows.parameters[0].dtype} if self.method.rows else {}
        return plain(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", step)
    config = settings(backbone, "bfloat16", method=method, optimiser__epochs=0.5)
    bundle = train(data, tmp_path / "run", config, console=QUIET)
    held = {name for name, dtype in seen[-1].items() if dtype == torch.bfloat16}
    assert len(held) == 14
    assert all("_proj" in name and "lora" not in name for name in held)
    assert seen[-1]["rows"] == seen[-1]["text_part.maps.0"] == torch.float32
    assert {dtype for name, dtype in seen[-1].items() if name not in held} == {torch.float32}
    if bundle is not None:
        assert {p.dtype for p in Bundle.open(bundle).load_model().parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("make", [make_model, make_t5])
def test_blocks_are_computed_in_bfloat16_and_losses_in_float32(precision: Precision, make: Any) -> None:
    model: PreTrainedModel = make(VOCABULARY.size).eval()
    parts = next(iter(source().epoch(0))).parts
    if make is make_t5:
        parts = [part_of(model, VOCABULARY, 4, 20)]
    inside: list[torch.dtype] = []
    linear = next(each for each in find_linears(model).values() if isinstance(each, nn.Linear))
    linear.register_forward_hook(lambda *found: inside.append(found[2].dtype))
    for part in parts:
        with torch.no_grad():
            plain = item_losses(model, VOCABULARY, part, "vocabulary")
            with forward_under(model, precision):
                lower = item_losses(model, VOCABULARY, part, "vocabulary")
            again = item_losses(model, VOCABULARY, part, "vocabulary")
        assert inside == [torch.float32, torch.bfloat16, torch.float32]
        inside.clear()
        for task, loss in lower.items():
            assert loss.dtype == torch.float32
            assert float(loss) == pytest.approx(float(plain[task]), rel=0.01)
            assert float(loss) != float(plain[task]) == float(again[task])


@pytest.mark.parametrize("name", ["backbone", "scratch"])
def test_the_engine_validates_a_model_of_bfloat16_layers(
    name: str, data: Path, backbone: Path, tmp_path: Path
) -> None:
    shape = {} if name == "backbone" else {"backbone__name": name, "backbone__layers": 1}
    config = settings(backbone, "bfloat16", validation__stop_on="ndcg@10", optimiser__epochs=1, **shape)
    assert train(data, tmp_path / "run", config, console=QUIET) is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("search.ndcg@10" in line.get("validation", {}) for line in lines)


def test_an_encoder_decoder_of_bfloat16_layers_is_refused_before_anything_is_written(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    config = settings(backbone, "bfloat16", backbone__name="t5-tiger", optimiser__relative=False)
    with pytest.raises(UserError, match=r"for decoder-only backbones.* choose 'autocast'"):
        train(data, tmp_path / "run", config, console=QUIET)
    assert not (tmp_path / "run").exists()


def stopped(trainer: type[Trainer], monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let trainings be killed before the step after so many."""
    plain = trainer._step

    def step(self: Trainer, *arguments: Any) -> Any:
        if self.progress.step == after:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(trainer, "_step", step)


@pytest.mark.parametrize("method", ["gems", "lora"])
def test_a_resumed_run_of_bfloat16_weights_is_the_same_bit_by_bit(
    method: str, data: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(backbone, "bfloat16", method=method, run__checkpoint_every=1e-6, optimiser__epochs=1.5)
    whole = train(data, tmp_path / "whole", config, console=QUIET)
    with monkeypatch.context() as patch:
        stopped(Trainer, patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", config, console=QUIET)
    resumed = train(data, tmp_path / "run", config, resume=True, console=QUIET)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert whole is not None
    assert resumed is not None
    after = weights_of(resumed)
    assert all(torch.equal(each, after[name]) for name, each in weights_of(whole).items())


def test_a_run_goes_on_in_another_precision_where_its_weights_are_float32(
    data: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, short = tmp_path / "run", {"run__checkpoint_every": 1e-6, "optimiser__epochs": 1}
    assert train(data, tmp_path / "whole", settings(backbone, "float32", **short), console=QUIET)
    with monkeypatch.context() as patch:
        stopped(Trainer, patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(data, run, settings(backbone, "autocast", **short), console=QUIET)
    with pytest.raises(RunError, match=r"other settings \(backbone\.precision\)"):
        train(data, run, settings(backbone, "bfloat16", **short), resume=True, console=QUIET)
    assert train(data, run, settings(backbone, "auto", **short), resume=True, console=QUIET)
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=0.01)


@pytest.mark.parametrize("method", ["full", "pcgrad"])
def test_adamw_on_bfloat16_weights_is_refused(method: str, backbone: Path) -> None:
    with pytest.raises(ConfigError, match=f"'bfloat16' is not for '{method}'.* Choose 'autocast'"):
        settings(backbone, "bfloat16", method=method)
    made = make_method(
        make_model(VOCABULARY.size), TrainConfig.load(None, {"method": method}), VOCABULARY.first_added
    )
    assert isinstance(made, NarrowMethod)
    with pytest.raises(UserError, match="needs float32 weights"):
        made.narrow()
