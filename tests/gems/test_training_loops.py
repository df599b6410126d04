"""GEMS where people train: plain loops, schedules, closures, Hugging Face's Trainer, accelerate, torch.compile."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.problems import TASKS, language_model, network, regression, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gems import GEMS, GemsError


def made(model: nn.Module, tasks: tuple[str, ...] = TASKS, **settings: Any) -> GEMS:
    return GEMS(model, tasks, **{"lr": 1e-2, "rank": 3, "refresh_every": 4, "stagger": 2} | settings)


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_block_for_each_task_is_one_call_with_all_losses() -> None:
    models = [network(), network()]
    whole, blocks = (made(model, joint=False) for model in models)
    for step in range(10):
        whole.backward(regression(models[0], step), samples=dict.fromkeys(TASKS, 10.0))
        whole.step()
        losses = regression(models[1], step)
        for k, task in enumerate(TASKS):
            with blocks.task(task, value=losses[task], samples=10.0):
                losses[task].backward(retain_graph=k == 0)
        blocks.step()
    assert_equal_weights(*models)
    assert torch.equal(whole.gate.weights(), blocks.gate.weights())


def test_parts_of_a_batch_within_one_block_add_up() -> None:
    model = network()
    optimizer = made(model, gate="uniform")
    for step in range(6):
        losses = regression(model, step)
        for k, task in enumerate(TASKS):
            with optimizer.task(task):  # without its value: the gate does without
                (0.25 * losses[task]).backward(retain_graph=True)
                (0.75 * losses[task]).backward(retain_graph=k == 0)
        optimizer.step()
    other = network()
    for _ in train(other, made(other, gate="uniform"), range(6)):
        pass
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_block_of_an_unknown_task_is_refused() -> None:
    optimizer = made(network())
    with pytest.raises(GemsError, match="unknown task 'buy'"), optimizer.task("buy"):
        pass
    assert not optimizer._held.seen


@pytest.mark.parametrize("tasks", [(), ("search",)])
def test_with_at_most_one_task_a_plain_backward_pass_is_enough(tasks: tuple[str, ...]) -> None:
    models = [network(), network()]
    named, plain = (made(model, tasks, gate="uniform") for model in models)
    for step in range(10):
        loss = regression(models[0], step)["search"]
        named.backward({"search": loss} if tasks else loss)
        named.step()
        regression(models[1], step)["search"].backward()
        plain.step()
    assert_equal_weights(*models)
    assert plain.steps == 10


def test_a_closure_computes_the_gradients_and_its_loss_is_returned() -> None:
    models = [network(), network()]
    usual, closing = (made(model, ()) for model in models)
    for step in range(5):
        usual.backward(regression(models[0], step)["search"])
        usual.step()

        def closure(step: int = step) -> Tensor:
            closing.zero_grad()
            loss = regression(models[1], step)["search"]
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        expected = float(regression(models[1], step)["search"].detach())
        assert float(closing.step(closure).detach()) == expected
    assert_equal_weights(*models)


def test_one_cycle_moves_rate_and_momentum_of_all_parameters() -> None:
    model = network()
    optimizer = made(model, lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=20)
    momenta, rates = set(), set()
    for _ in train(model, optimizer, range(20)):
        momenta.add(optimizer.weights[0]._last.betas[0])  # type: ignore[union-attr]
        adamw = optimizer._plain._adamw
        assert adamw is not None
        assert adamw.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]
        rates.add(adamw.param_groups[0]["lr"])
        if schedule.last_epoch < 19:
            schedule.step()
    assert min(momenta) == pytest.approx(0.85, abs=0.02)
    assert max(momenta) == pytest.approx(0.95, abs=0.02)
    assert max(rates) == pytest.approx(1e-2, rel=0.1)


def test_a_change_of_momentum_is_that_of_adamw() -> None:
    """A square weight in full rank is AdamW in a rotated basis; with OneCycleLR, too."""
    layer = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    start = layer.weight.detach().clone()
    inputs = torch.randn(30, 6, dtype=torch.float64)
    optimizer = GEMS(layer, lr=1e-2, rank=6, refresh_every=1000)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=15)
    for _ in range(15):
        optimizer.backward((layer(inputs) - 1).square().mean())
        optimizer.step()
        if schedule.last_epoch < 14:
            schedule.step()
    basis = optimizer.weights[0].subspaces.basis
    rotated = nn.Parameter(start @ basis)
    reference = torch.optim.AdamW([rotated], lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=1e-2, total_steps=15)
    for _ in range(15):
        reference.zero_grad()
        (inputs @ (rotated @ basis.T).T - 1).square().mean().backward()
        reference.step()
        if schedule.last_epoch < 14:
            schedule.step()
    assert torch.allclose(layer.weight, rotated @ basis.T, atol=1e-10)


def test_the_state_has_the_form_of_pytorchs_optimizers() -> None:
    model = network()
    optimizer = made(model)
    for _ in train(model, optimizer, range(3)):
        pass
    state = optimizer.state_dict()
    numbers = [k for group in state["param_groups"] for k in group["params"]]
    assert numbers == list(range(len(list(model.parameters()))))
    assert set(state["state"]) == set(numbers)
    assert {"lr", "betas", "eps", "weight_decay"} <= set(state["param_groups"][0])
    with pytest.raises(GemsError, match="older version"):
        optimizer.load_state_dict({"weights": {}, "steps": 3})


def test_clipping_from_outside_is_noticed() -> None:
    model = network()
    optimizer = made(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in train(model, optimizer, range(2)):
            pass
    optimizer.backward(regression(model, 3))
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.warns(UserWarning, match=r"clip_grad_norm_.*GEMS\(clip=") as caught:
        optimizer.step()
    assert caught[0].filename == __file__


def test_a_gradient_scaler_is_refused_by_name() -> None:
    model = network()
    optimizer = made(model, ())
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(regression(model, 0)["search"]).backward()  # type: ignore[no-untyped-call]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GemsError, match="GradScaler"):
        scaler.step(optimizer)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    regression(model, 0)["search"].backward()  # and without it training goes on
    optimizer.step()
    assert optimizer.steps == 1


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Twelve texts of sixteen tokens."""

    def __init__(self) -> None:
        self.ids = torch.randint(0, 97, (12, 16), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def test_an_unmodified_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    def trainer(folder: str) -> tuple[Trainer, nn.Module]:
        model, linears, knowledge = language_model()
        optimizer = GEMS(
            model, lr=1e-2, rank_share=0.25, linears=linears, knowledge=knowledge, refresh_every=3, stagger=2
        )
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=4, max_steps=6, save_steps=3, report_to=[],
            max_grad_norm=0, disable_tqdm=True, logging_steps=1, use_cpu=True, dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return Trainer(
            model=model, args=arguments, train_dataset=Texts(), optimizers=(optimizer, schedule)
        ), model

    first, model = trainer("a")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*clip_grad_norm_.*")
        first.train()
    losses = [entry["loss"] for entry in first.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    again, resumed = trainer("b")
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_equal_weights(model, resumed)


def test_accelerate_prepares_it_and_runs_its_backward_pass() -> None:
    from accelerate import Accelerator

    models = [network(), network()]
    plain = made(models[0], ())
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(models[1], made(models[1], ()))
    for step in range(6):
        plain.backward(regression(models[0], step)["search"])
        plain.step()
        accelerator.backward(regression(model, step)["search"])
        optimizer.step()
        optimizer.zero_grad()
    assert_equal_weights(*models)


def test_a_compiled_model_trains_as_the_model_itself() -> None:
    models = [network(), network()]
    optimizers = [made(model) for model in models]
    compiled = torch.compile(models[1], backend="aot_eager")
    for step in range(6):
        for model, optimizer in zip((models[0], compiled), optimizers, strict=True):
            optimizer.backward(regression(model, step))
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


class Waits(TorchDispatchMode):
    """Counts the operators that make the host wait for a device: those that return a number of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings", [{}, {"joint": False}, {"relative": True}, {"growth_limit": 1.01}, {"clip": 0.1}]
)
def test_the_host_waits_as_often_for_many_weights_as_for_few(settings: dict[str, Any]) -> None:
    counts = []
    for depth in (1, 6):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(depth)))
        optimizer = made(model, refresh_every=50, stagger=1, **settings)
        for step in range(3):
            y = model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step)))
            with Waits() as waits:
                optimizer.backward({"search": y.square().mean(), "recommendation": y.sin().mean()})
                optimizer.step()
        counts.append(waits.count)  # of the last step, between refreshes
    assert counts[0] == counts[1] == 1
