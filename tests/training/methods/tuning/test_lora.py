"""LoRA: injected in place, trained with the added rows, folded into plain weights; and helpers for method tests."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.batches import VOCABULARY, in_rows, source
from support.bundles import make_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from index.sequence.encoder import TASKS
from index.sequence.events import Task
from training.errors import UserError
from training.loop.batches import Batch
from training.loop.losses import item_losses
from training.loop.parts import Part
from training.methods.adamw import AdamWTuning
from training.methods.tuning.lora import LoraTuning, block_linears

ARCHS = ["llama", "gpt-neox"]
BATCHES = list(source(part_tokens=10**6).epoch(0))  # one part each
IDS = BATCHES[0].parts[0].ids


class SplitEmbedding(nn.Module):
    """A frozen table whose last rows are replaced by a trainable parameter."""

    def __init__(self, weight: nn.Parameter, first: int) -> None:
        super().__init__()
        self.weight = weight
        self.rows = nn.Parameter(weight[first:].detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, torch.cat([self.weight[: -len(self.rows)], self.rows]))


def frozen_model(arch: str) -> tuple[PreTrainedModel, list[nn.Parameter]]:
    """Return a frozen model in training mode and its trainable rows; adapters are still to be added."""
    model = make_model(VOCABULARY.size, arch).train()
    model.requires_grad_(False)
    embedding = SplitEmbedding(model.get_input_embeddings().weight, VOCABULARY.first_added)
    model.set_input_embeddings(embedding)
    return model, [embedding.rows]


def losses_of(model: PreTrainedModel, part: Part, batch: Batch) -> dict[Task, Tensor]:
    sums = item_losses(model, VOCABULARY, part, "level")
    return {task: total / batch.targets[task] for task, total in sums.items()}


def shares_of(batch: Batch) -> dict[Task, float]:
    return {task: count / sum(batch.targets.values()) for task, count in batch.targets.items()}


def train_step(method: Any, model: PreTrainedModel, batch: Batch, rate: float = 1e-2) -> dict[str, float]:
    """Run a step as in the trainer; the figures also contain the loss before it."""
    shares, mean = shares_of(batch), 0.0
    for part in batch.parts:
        losses = losses_of(model, part, batch)
        mean += sum(shares[task] * float(loss.detach()) for task, loss in losses.items())
        method.backward(losses, shares)
    return method.step(rate) | {"loss": mean}


def rows_of(batch: Batch) -> Batch:
    """Return the same batch with each row as a part of its own."""
    parts = [part for part in in_rows(batch.parts) if bool((part.level >= 0).any())]
    return Batch(parts, batch.targets, batch.tokens)


def only(batch: Batch, task: Task) -> Batch:
    """Return the same batch with the targets of one task only."""
    parts = [
        replace(part, level=part.level.where(part.task == TASKS.index(task), torch.tensor(-1).to(part.level)))
        for part in batch.parts
    ]
    return Batch(parts, {task: batch.targets[task]}, batch.tokens)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def directions(method: AdamWTuning) -> list[Tensor]:
    """Return the clipped gradients of the first step, from the optimizer's first moment (1 − 0.9) g."""
    state = method.state_dict()
    return [entry["exp_avg"] / 0.1 for entry in state.get("optimizer", state)["state"].values()]


def check_bad_gradients_change_nothing(
    method: Any, twin: Any, model: PreTrainedModel, twin_model: Any
) -> None:
    """Check that a bad gradient has no effect. `twin`, the same method on an equal model, never sees it."""
    for m, net in ((method, model), (twin, twin_model)):
        train_step(m, net, BATCHES[0])
    before, state = snapshot(model), through_a_file(method.state_dict())
    losses = losses_of(model, BATCHES[1].parts[0], BATCHES[1])
    method.backward({task: loss * float("nan") for task, loss in losses.items()}, shares_of(BATCHES[1]))
    with pytest.raises(ArithmeticError):
        method.step(1e-2)
    assert equal(before, snapshot(model))
    assert equal(method.state_dict(), state)
    for m, net in ((method, model), (twin, twin_model)):
        train_step(m, net, BATCHES[1])
    assert equal(snapshot(model), snapshot(twin_model))
    assert not equal(before, snapshot(model))


def check_resume(method: Any, model: PreTrainedModel, twin: Any, twin_model: PreTrainedModel) -> None:
    """Check that `twin`, which continues from a checkpoint after two steps, makes the same steps."""
    for batch in BATCHES[:2]:
        train_step(method, model, batch)
    saved = through_a_file([model.state_dict(), method.state_dict(), torch.get_rng_state()])
    for batch in BATCHES[2:4]:
        train_step(method, model, batch)
    twin_model.load_state_dict(saved[0])
    twin.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    for batch in BATCHES[2:4]:
        train_step(twin, twin_model, batch)
    assert equal(snapshot(model), snapshot(twin_model))
    assert not equal(saved[0], snapshot(model))


def check_costs(method: AdamWTuning, trained: int, gradients: int = 1) -> None:
    """Check the costs of AdamW: two moments per weight and a step count per tensor, all float32."""
    tensors = len(directions(method))
    assert method.costs() == {
        "state_bytes": 8 * trained + 4 * tensors,
        "gradient_bytes": 4 * trained * gradients,
    }


def make(arch: str = "llama", **options: Any) -> tuple[PreTrainedModel, list[nn.Parameter], LoraTuning]:
    model, rows = frozen_model(arch)
    settings = {
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "clip": 1.0,
    }
    return model, rows, LoraTuning(model, rows, **settings | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_linear_map_of_the_blocks_is_adapted_and_nothing_changes_at_first(arch: str) -> None:
    model = frozen_model(arch)[0].eval()
    expected = model(IDS).logits
    body = model.base_model
    linears = set(block_linears(model))
    assert len(linears) == 2 * {"llama": 7, "gpt-neox": 4}[arch]
    assert linears == {n for n, m in model.named_modules() if type(m) is nn.Linear} - {"lm_head", "embed_out"}
    method = LoraTuning(
        model, [], rank=4, alpha=8, dropout=0.5, learning_rate=1e-2, weight_decay=0.0, clip=1.0
    )
    assert model.base_model is body
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(IDS).logits, expected)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(linears)
    assert all("lora_" in name for name in trained)
    assert method.exportable


@pytest.mark.parametrize("arch", ARCHS)
def test_training_lowers_the_loss_and_leaves_the_base_weights(arch: str) -> None:
    model, rows, method = make(arch)
    before = snapshot(model)
    losses = [train_step(method, model, BATCHES[0])["loss"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    after = snapshot(model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    expected = {name for name in after if "lora_" in name or name.endswith(".rows")}
    assert moved == expected
    assert rows[0].requires_grad
    check_costs(method, sum(after[name].numel() for name in expected))


@pytest.mark.parametrize("arch", ARCHS)
def test_merging_folds_the_adapters_into_plain_weights(arch: str, tmp_path: Path) -> None:
    model, _, method = make(arch, dropout=0.2)
    plain = snapshot(frozen_model(arch)[0])
    for batch in BATCHES[:3]:
        train_step(method, model, batch)
    model.eval()
    expected = model(IDS).logits
    method.merge()
    assert torch.allclose(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == plain.keys()
    assert {type(m) for m in block_linears(model).values()} == {nn.Linear}
    assert {type(m).__module__.split(".")[0] for m in model.modules()} <= {"torch", "transformers", __name__}
    assert not any(torch.equal(m.weight, plain[f"{n}.weight"]) for n, m in block_linears(model).items())

    embedding = model.get_input_embeddings()  # the caller folds the rows
    table = nn.Embedding(*embedding.weight.shape)
    table.weight = nn.Parameter(torch.cat([embedding.weight[: -len(embedding.rows)], embedding.rows]))
    model.config.tie_word_embeddings = False
    model.set_input_embeddings(table)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_gradients_of_parts_add_up() -> None:
    found = []
    for cut in (lambda batch: batch, rows_of):
        model, _, method = make(clip=1e9)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:  # so that A has a gradient, too
                    p.fill_(0.01)
        train_step(method, model, cut(BATCHES[0]))
        found.append(directions(method))
    assert all(float(g.norm()) > 0 for g in found[0])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*found, strict=True))


def test_a_batch_without_one_task_trains_on_the_other() -> None:
    model, _, method = make()
    batch = only(BATCHES[0], Task.SEARCH)
    losses = [train_step(method, model, batch)["loss"] for _ in range(10)]
    assert losses[-1] < losses[0]


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    (model, _, method), (twin_model, _, twin) = make(dropout=0.2), make(dropout=0.2)
    check_resume(method, model, twin, twin_model)


def test_gradients_that_are_not_finite_change_nothing() -> None:
    (model, _, method), (twin_model, _, twin) = make(), make()
    check_bad_gradients_change_nothing(method, twin, model, twin_model)


def test_processes_that_share_a_batch_step_like_one() -> None:
    """Each process has half of the sequences; `reduce` is called once per step with all gradients."""
    whole_model, _, whole = make(clip=0.5)
    train_step(whole, whole_model, BATCHES[0])
    rows = rows_of(BATCHES[0])
    halves = [Batch(rows.parts[k::2], rows.targets, rows.tokens) for k in range(2)]
    sent: list[list[Tensor]] = []
    model, _, first = make(clip=0.5, reduce=lambda tensors: sent.append([t.clone() for t in tensors]))
    train_step(first, model, halves[0])

    def add(tensors: list[Tensor]) -> None:
        for tensor, other in zip(tensors, sent[0], strict=True):
            tensor.add_(other)

    model, _, second = make(clip=0.5, reduce=add)
    train_step(second, model, halves[1])
    assert len(sent) == 1
    pairs = zip(directions(whole), directions(second), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)
    assert not all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5)
        for a, b in zip(directions(whole), directions(first), strict=True)
    )


def test_without_peft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'gems-sr\[peft\]'"):
        make()
