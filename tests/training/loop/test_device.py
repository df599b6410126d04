"""Training on a device other than the host's, a pretend one: nothing is misplaced, and the host rarely waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.batches import VOCABULARY, source
from support.bundles import make_model
from support.pretend_device import DeviceTensor, MixedDevicesError, moved, pretend_device, waits
from torch import Tensor
from transformers import PreTrainedModel

import gems.weights.renewal
import training.loop.losses
import training.model.forward
from gems import collect_knowledge, find_linears
from index.extensions import choices
from index.sequence.events import Task
from training.config import METHODS, TrainConfig
from training.dense.states import target_states
from training.errors import UserError
from training.loop.checkpoint import load_checkpoint, save_checkpoint
from training.loop.losses import item_losses
from training.loop.trainer import Trainer
from training.methods.method import Method
from training.methods.registry import make_method
from training.model.precision import autocast, forward_under
from training.model.rows import AddedRows
from training.model.text_part import TextPart
from training.plan.pretend_autocast import PretendAutocast
from training.run.device import chosen_device

CONFIG = TrainConfig.load(None, {"optimiser.learning_rate": 1e-2})
NO_REFRESH = {"gems.refresh_every": 100}


def make() -> PreTrainedModel:
    return make_model(VOCABULARY.size).double()  # the order of sums does not matter


def made(model: PreTrainedModel, method: str, settings: dict[str, Any] | None = None) -> Method:
    torch.manual_seed(3)
    config = TrainConfig.load(
        None, {"method": method, "gems.refresh_every": 2, "gems.stagger": 1} | (settings or {})
    )
    return make_method(model, config, VOCABULARY.first_added)


def train(model: PreTrainedModel, method: Method, steps: int = 3) -> list[float]:
    """Make steps of batches that are the same on all devices. Return their losses."""
    batches = source(title_queries=0.2, seed=1)
    trainer = Trainer(Path(), CONFIG, model, VOCABULARY, method, batches, validator=None)  # type: ignore[arg-type]
    found = [trainer._step("", batch) for _, batch in zip(range(steps), batches.epoch(0), strict=False)]
    return [figures[f"{task}.loss"] for figures in found for task in Task]


def values(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a state, named by their paths, as tensors on the host."""
    if isinstance(state, dict | list | tuple):
        for key, each in state.items() if isinstance(state, dict) else enumerate(state):
            yield from values(each, f"{name}/{key}")
    else:
        yield name, state.host if isinstance(state, DeviceTensor) else state


def assert_equal_states(found: Any, expected: Any) -> None:
    wanted = dict(values(expected))
    for name, each in values(found):
        if isinstance(each, Tensor):
            assert torch.allclose(each, wanted[name], rtol=1e-6, atol=1e-7), name
        else:
            assert each == pytest.approx(wanted[name]), name


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in choices(METHODS)),
    ("gems", {"gems.joint": False, "gems.gate": "hypergradient"}),
    ("gems", {"gems.share_bases": True}),
    (
        "gems",
        {"gems.output_bases": True, "optimiser.other_weights": "subspace", "knowledge.null_space": False},
    ),
    ("full", {"optimiser.other_weights": "frozen"}),
]


def test_autocast_misplaces_nothing() -> None:
    """A float32 model: products in bfloat16 end as near those of the host as bfloat16 rounds one number.

    They are not the same to the bit: the host's attention rounds at other places than the stand-in for a device's does.
    """
    found = []
    for device in (nullcontext(), pretend_device()):
        with device as there:
            model = make_model(VOCABULARY.size)
            if there is not None:
                moved(model)
            method = made(model, "gems")
            # torch has no autocast for devices like this one
            under = autocast if there is None else PretendAutocast
            with forward_under(model, "autocast", under):
                found.append(train(model, method))
    assert found[1] == pytest.approx(found[0], rel=torch.finfo(torch.bfloat16).eps / 2)


# their weights come from solvers that stop at 1e-8; those of the others follow from closed formulas
SOLVED = ("cagrad", "nash-mtl")


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_steps_on_a_device_are_those_on_the_host(method: str, settings: dict[str, Any]) -> None:
    """Losses, weights and states are the same, through first bases and refreshes."""
    host = make()
    on_host = made(host, method, settings)
    expected = train(host, on_host)
    with pretend_device():
        model = make()
        moved(model)
        trained = made(model, method, settings)
        assert train(model, trained) == pytest.approx(expected, rel=1e-6 if method in SOLVED else 1e-9)
    assert_equal_states(model.state_dict(), host.state_dict())
    assert_equal_states(trained.state_dict(), on_host.state_dict())


@pytest.mark.parametrize("method", ["full", "gems", "lora"])
def test_the_state_of_a_run_moves_between_devices(method: str, tmp_path: Path) -> None:
    host = make()
    on_host = made(host, method)
    train(host, on_host, 2)
    save_checkpoint(tmp_path, host, on_host, {"step": 2})
    weights = {name: weight.clone() for name, weight in host.state_dict().items()}
    state = tmp_path / "checkpoints" / "step-00000002" / "state.pt"
    expected = train(host, on_host, 2)
    with pretend_device():
        model = make()
        model.load_state_dict(weights, strict=False)
        moved(model)
        trained = made(model, method)
        model.load_state_dict(weights)
        trained.load_state_dict(torch.load(state, map_location="cpu", weights_only=True)["method"])
        assert train(model, trained, 2) == pytest.approx(expected, rel=1e-9)
    assert load_checkpoint(tmp_path, host, on_host) == {"step": 2}


@pytest.mark.parametrize(
    ("method", "most"), [("full", 2), ("lora", 2), ("pcgrad", 3), ("subspace", 3), ("gems", 3)]
)
def test_the_host_waits_for_the_device_a_few_times_in_a_step(method: str, most: int) -> None:
    """Once for the losses, once or twice for norms, and once a part, where transformers looks for packed rows."""
    with pretend_device():
        model = make()
        moved(model)
        optimiser = made(model, method, NO_REFRESH)
        train(model, optimiser, 1)  # the first bases, in whose loops the host looks at the device
        parts = len(next(iter(source(title_queries=0.2, seed=1).epoch(0))).parts)
        waits.clear()
        train(model, optimiser, 1)
        assert waits.total() <= parts + most, waits


def test_text_parts_states_and_knowledge_are_computed_where_the_model_is() -> None:
    part = next(iter(source().epoch(0))).parts[0]
    vectors = np.random.default_rng(0).normal(size=(VOCABULARY.size - VOCABULARY.first_added, 8))
    linears = find_linears(make())
    with pretend_device() as device:
        model = make_model(VOCABULARY.size)
        moved(model)
        states, items = target_states(model, source())
        assert states.device == items.device == torch.device("cpu")
        assert len(states) == len(items) > 0
        text = {"input_ids": torch.arange(24).view(2, 12).to(device), "use_cache": False}
        basis = collect_knowledge(model.base_model, [text], find_linears(model), keep=0.5)
        assert {basis.directions(name, 0.9, 4).device.type for name in linears} == {"cpu"}
        divided = TextPart(model, VOCABULARY.first_added, vectors.astype(np.float32))
        with divided.added():
            losses = item_losses(model, VOCABULARY, part, "vocabulary", text=divided)
            torch.stack(list(losses.values())).sum().backward()
        assert all(each.grad is not None for each in divided.maps)
        divided.finish(model)


def on_the_host(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def faults(method: Any, patch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    """Return slips that would stop a training on a GPU: what plants each of them."""
    spaces = method._optimizer.weights[0].subspaces

    def left_behind(name: str) -> Callable[[], None]:
        return lambda: patch.setattr(spaces, name, on_the_host(getattr(spaces, name)))

    def of_rows(_: AddedRows, first: int, last: int) -> Tensor:
        return torch.zeros(last - first, 32, dtype=torch.float64)

    return {
        "tokens": lambda: patch.setattr(training.loop.losses, "to_device", lambda values, _: values),
        "mask of packed rows": lambda: patch.setattr(
            training.model.forward,
            "_own_sample",
            lambda position, dtype: torch.zeros(len(position), 1, *2 * position.shape[1:], dtype=dtype),
        ),
        "rows of the head": lambda: patch.setattr(AddedRows, "head", of_rows),
        "basis": left_behind("basis"),
        "new basis": lambda: patch.setattr(
            gems.weights.renewal,
            "leading_directions",
            lambda source, rank, **_: torch.zeros(source.shape[1], rank, dtype=source.dtype),
        ),
        "projected gradient": left_behind("projected"),
        "moments": left_behind("first"),
    }


FAULTS = (
    "tokens", "mask of packed rows", "rows of the head", "basis", "new basis", "projected gradient", "moments",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_misplaced_tensor_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        with pretend_device():
            model = make()
            moved(model)
            method = made(model, "gems", {"gems.refresh_every": 1} if fault == "new basis" else NO_REFRESH)
            train(model, method, 1)
            faults(method, monkeypatch)[fault]()
            train(model, method, 1)

    with pytest.raises(MixedDevicesError):
        step()


def test_a_device_that_is_not_there_is_refused() -> None:
    assert chosen_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert chosen_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match=r"no GPU is there .*--device cpu"):
            chosen_device("cuda")
