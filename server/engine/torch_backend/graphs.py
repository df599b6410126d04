"""Passes over beams in few shapes, so that a GPU can replay captured CUDA graphs.

A pass over a few codes is hundreds of operations, and Python takes longer to launch them than a GPU to compute them. A
CUDA graph launches all of them at once, but always with the same shapes at the same addresses. So the rows of a pass
stand in fixed buffers, padded to powers of two, and so do the keys and values that they attend to:

    inputs   int64 [4 + depth, requests, rows]             token, position, slot, length of the prompt, own slots
    store    [layers, 2, requests, kv heads, slots, d]     the last slot takes what padding writes

Padding changes no answer: rows affect each other by attention alone, and no row attends to a slot of another (a bias
of −inf, or an own slot of −1). The requests' own `KeyValues` stay complete, so that any pass may be computed without
padding: passes with prompts in them are. Everything ragged (tries, top-k) stays outside. On a CPU nothing is captured,
and the same padded pass is computed, which is how it is tested.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from server.engine.torch_backend.attention import ForwardPass, KeyValues, attention_in_parts
from server.engine.torch_backend.forward_input import ForwardInput

logger = logging.getLogger("server.engine.torch_backend.graphs")

LEAST_ROWS = 8
LEAST_SLOTS = 128  # a multiple of the strides that fused kernels need in a bias
WARM_UPS = 2  # passes before a capture: libraries set themselves up in the first


class Shape(NamedTuple):
    """Shape of a padded pass: number of requests, and rows and slots of each."""

    requests: int
    rows: int
    slots: int

    @classmethod
    def of(cls, per_request: Sequence[ForwardInput]) -> Shape:
        """Return the shape for these inputs. It counts all slots that the requests will fill: all levels share it."""
        rows = max(one.segment.rows for one in per_request)
        slots = max(one.segment.key_values.capacity for one in per_request) + 1
        return cls(_rounded(len(per_request), 1), _rounded(rows, LEAST_ROWS), _rounded(slots, LEAST_SLOTS))


class PaddedPasses:
    """Forward passes over beams, padded to few shapes.

    forward_pass: a `Decoder`, or anything with its signature.
    depth: own slots of a row at most.
    slots: slots of all requests of a pass together; larger passes are not taken.
    cuda_graphs: shapes whose graphs are kept, the most recently used ones; 0 takes no pass.
    """

    def __init__(
        self, forward_pass: ForwardPass, device: torch.device, depth: int, slots: int, cuda_graphs: int
    ) -> None:
        self._forward_pass = forward_pass
        self._depth, self._slots, self._cuda_graphs = depth, slots, cuda_graphs
        self._record = _Recorder(device)
        self._recorded: OrderedDict[Shape, tuple[Tensor, Callable[[], Tensor]]] = OrderedDict()  # with inputs
        self._buffer: Tensor | None = None  # of the store
        self._layout = (0, 0)  # requests and slots, as which it was used last
        self._held: dict[int, tuple[weakref.ref[KeyValues], int]] = {}  # whose it holds, and how many slots

    @property
    def shapes(self) -> list[Shape]:
        """Shapes whose graphs are kept, the latest last."""
        return list(self._recorded)

    def forward(self, per_request: Sequence[ForwardInput]) -> Tensor | None:
        """Compute the hidden states [rows, d] of a pass without padding; returns None for a pass that is not taken.

        After a pass could not be captured, no pass is taken any more.
        """
        if not self._cuda_graphs or any(one.segment.own is None for one in per_request):
            return None
        shape = Shape.of(per_request)
        if shape.requests * shape.slots > self._slots:
            return None
        try:
            store = self._store(shape, per_request[0].segment.key_values.slots(slice(0)))
            inputs, replay = self._pass(shape, store)
        except RuntimeError as error:
            logger.warning("passes are not captured any more", extra={"reason": str(error)[:500]})
            self._cuda_graphs, self._buffer = 0, None
            self._recorded.clear()
            return None
        self._hold(shape, store, per_request)
        inputs.copy_(_padded(shape, self._depth, per_request))
        hidden = replay().view(shape.requests, shape.rows, -1)
        for number, one in enumerate(per_request):
            new = slice(one.segment.begin, one.segment.end)
            one.segment.key_values.slots(new).copy_(store[:, :, number, :, new])
        return torch.cat([hidden[number, : one.segment.rows] for number, one in enumerate(per_request)])

    def _store(self, shape: Shape, like: Tensor) -> Tensor:
        """Return the view of the shared buffer for a shape. like: [layers, 2, kv heads, 0, d]."""
        layers, _, heads, _, d = like.shape
        size = layers * 2 * heads * d
        if self._buffer is None:
            self._buffer = like.new_zeros(size * self._slots)
        used = self._buffer[: size * shape.requests * shape.slots]
        return used.view(layers, 2, shape.requests, heads, shape.slots, d)

    def _pass(self, shape: Shape, store: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return the input buffer of a shape, and the pass that computes on it and the store."""
        if shape not in self._recorded:
            inputs = _padded(shape, self._depth, []).to(store.device)

            def step() -> Tensor:
                rows = _PaddedRows(store, inputs)
                return self._forward_pass(inputs[0].flatten(), inputs[1].flatten(), [rows])

            self._recorded[shape] = inputs, self._record(step)
            # Only now: a pool of graphs lives by the graphs in it.
            if len(self._recorded) > self._cuda_graphs:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(shape)
        return self._recorded[shape]

    def _hold(self, shape: Shape, store: Tensor, per_request: Sequence[ForwardInput]) -> None:
        """Copy slots of the requests that the store lacks; from the second level on there are hardly any."""
        if self._layout != (shape.requests, shape.slots):
            self._layout = shape.requests, shape.slots
            self._held.clear()
        for number, one in enumerate(per_request):
            key_values = one.segment.key_values
            whose, known = self._held.get(number, (None, 0))
            if whose is None or whose() is not key_values:
                known = 0
                store[:, :, number] = 0  # 0 × NaN is NaN: no infinite number of another request may stay
            new = slice(known, one.segment.begin)
            store[:, :, number, :, new] = key_values.slots(new)
            self._held[number] = weakref.ref(key_values), one.segment.end


class _PaddedRows:
    """All rows of a padded pass, in place of segments; see the head of this file."""

    def __init__(self, store: Tensor, inputs: Tensor) -> None:
        self.rows = inputs[0].numel()
        self._store = store
        self._slot = inputs[2, None, :, None, :, None]
        self._own = inputs[4:].permute(1, 2, 0)
        beyond = torch.arange(store.shape[4], device=store.device) >= inputs[3, :, :1]
        self._bias = torch.zeros_like(beyond, dtype=store.dtype).masked_fill_(beyond, -torch.inf)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """See `Segment.attend`."""
        store = self._store[layer]  # [2, requests, kv heads, slots, d]
        _, requests, kv_heads, slots, d = store.shape
        new = torch.stack([key, value]).view(2, kv_heads, requests, -1, d).transpose(1, 2)
        store.scatter_(3, self._slot.expand_as(new), new)
        queries = query.reshape(len(query), requests, -1, d).transpose(0, 1)
        keys, values = store
        out = attention_in_parts(queries, keys, values, slots, self._own, scale or d**-0.5, self._bias)
        return out.transpose(1, 2).flatten(0, 1)


class _Recorder:
    """Captures passes on a GPU; elsewhere it captures nothing.

    All graphs share one memory pool: no two run at a time, and the result of one is read before the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._captures = device.type == "cuda"
        if self._captures:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return a function that repeats `step` at the same addresses. Its result is valid until the next call."""
        if not self._captures:
            return step
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                step()
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def _padded(shape: Shape, depth: int, per_request: Sequence[ForwardInput]) -> Tensor:
    """Make the input buffer of a pass. Padding reads one slot of a prompt, and writes to the last slot."""
    inputs = torch.full((4 + depth, shape.requests, shape.rows), -1)
    for line, value in enumerate((0, 0, shape.slots - 1, 1, shape.slots - 1)):
        inputs[line] = value
    for number, one in enumerate(per_request):
        segment, rows = one.segment, slice(one.segment.rows)
        inputs[0, number, rows] = one.ids
        inputs[1, number, rows] = one.positions
        inputs[2, number, rows] = torch.arange(segment.begin, segment.end)
        inputs[3, number] = segment.shared
        if segment.own is not None:
            inputs[4 : 4 + segment.own.shape[1], number, rows] = segment.own.T
    return inputs


def _rounded(number: int, least: int) -> int:
    """Round up to a power of two, and to `least` at least."""
    return max(least, 1 << (number - 1).bit_length())
