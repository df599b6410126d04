"""A pretend accelerator: tensors that say `gpu:0` and are computed on the CPU.

They have real values and real autograd. An operation that mixes them with tensors of the CPU is an error, as on a GPU,
and every wait of the host for the device is counted: reading a number, sizes that depend on values, and copies to the
host. It shows misplaced tensors and hidden waits, not kernels, memory or speed.

It uses the private-use backend of torch, which a process can set up once and never take down. An error that is raised
in a backward pass there ends the process, so those of a backward pass are raised at the end of the block.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "gpu"
ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
# the host must know a value, or how many there are, before it can go on
WAITING = {
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default,
    aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default,
}  # fmt: skip

waits: Counter[str] = Counter()  # waits of the host for the device, by operation
_mixed: list[str] = []  # operations of backward passes with tensors on both sides


class MixedDevicesError(RuntimeError):
    """Operations had tensors on the device and on the host."""


class _Module(backend_registration._DummyBackendModule):
    """The module of the device, `torch.gpu`, which is there inside `pretend_device` only: no other test sees it."""

    there = False

    def is_available(self) -> bool:
        return self.there

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class DeviceTensor(Tensor):
    """A tensor on the pretend device. host: its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip

    def __init__(self, host: Tensor) -> None:
        self.host = host

    def tolist(self) -> Any:
        waits[f"tolist in {_caller()}"] += 1
        return self.host.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("the tensor is on the device; copy it to the host first")

    @classmethod
    def __torch_dispatch__(
        cls, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(operation, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Lets factories with `device="gpu"` make tensors of the pretend device."""

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(operation, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Offer the device inside the block, and count its waits from zero.

    Raises `MixedDevicesError` where an operation mixes devices, or at the end of the block.
    """
    if torch._C._get_privateuse1_backend_name() != NAME:
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    waits.clear()
    _mixed.clear()
    # backward passes run in this thread, where the factories are; `torch.tensor` is no operation that they see
    with (
        patch.object(_Module, "there", True),
        patch.object(torch, "tensor", partial(_tensor, torch.tensor)),
        _Factories(),
        torch.autograd.set_multithreading_enabled(False),
    ):
        yield torch.device(NAME, 0)
    if _mixed:
        raise MixedDevicesError("; ".join(_mixed))


def _tensor(tensor: Callable[..., Tensor], *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    on_device = device is not None and torch.device(device).type == NAME
    made = tensor(*args, device=None if on_device else device, **kwargs)
    return DeviceTensor(made) if on_device else made


def moved(model: nn.Module) -> nn.Module:
    """Move the weights and buffers of a model to the device, in place: each one once, tied ones stay tied."""
    there: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                if id(weight) not in there:
                    there[id(weight)] = nn.Parameter(DeviceTensor(weight.detach()), weight.requires_grad)
                module._parameters[name] = there[id(weight)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = DeviceTensor(buffer)
    return model


def _computed(operation: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, DeviceTensor)]
    here = [each for each in tensors if not isinstance(each, DeviceTensor)]
    if there and operation not in CROSSING and any(each.dim() > 0 for each in here):
        shapes = [[tuple(each.shape) for each in some] for some in (there, here)]
        found = f"{operation}: {shapes[0]} on the device and {shapes[1]} on the host, in {_caller()}"
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass
            raise MixedDevicesError(found)
        _mixed.append(found)
    places = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.device)]
    on_device = places[0].type == NAME if places else bool(there)
    if operation is aten.copy_.default:
        on_device = isinstance(args[0], DeviceTensor)
    waited = operation in WAITING or (operation in CROSSING and not on_device)
    if there and waited:
        waits[f"{operation} in {_caller()}"] += 1
    computed = operation(*tree_map(_host, args), **tree_map(_host, kwargs))
    if not on_device:
        return computed
    computed = tree_map(lambda each: DeviceTensor(each) if isinstance(each, Tensor) else each, computed)
    return return_and_correct_aliasing(operation, args, kwargs, computed) if there else computed


def _caller() -> str:
    """Return the innermost line of this project that is running."""
    ours = [
        frame for frame in traceback.extract_stack()
        if ROOT in Path(frame.filename).parents and ".venv" not in frame.filename and frame.filename != __file__
    ]  # fmt: skip
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "a library"


def _host(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.host if isinstance(value, DeviceTensor) else value
