"""The implementations of attention to a request's slots, compared with a plain masked softmax in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.engine.torch_backend.attention import (
    KeyValues,
    Segment,
    attention_in_blocks,
    attention_in_parts,
    fused_attention,
)

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
)


def reference(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    groups = len(query) // len(keys)
    k, v = (x.double().repeat_interleave(groups, 0) for x in (keys, values))
    scores = (query.double() @ k.transpose(1, 2) * scale).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


@st.composite
def beams(draw: st.DrawFn) -> tuple[int, Tensor]:
    """Return the length of a prompt, and the slots of the rows of a last level, with their ancestors in between."""
    shared, levels, rows = draw(st.integers(1, 40)), draw(st.integers(0, 3)), draw(st.integers(1, 20))
    ancestors = torch.tensor(
        [[draw(st.integers(shared + 9 * j, shared + 9 * j + 8)) for j in range(levels)] for _ in range(rows)],
        dtype=torch.long,
    ).view(rows, levels)
    itself = shared + 9 * levels + torch.arange(rows).unsqueeze(1)
    return shared, torch.cat([ancestors, itself], 1)


@given(beams(), st.sampled_from([(4, 4), (6, 2), (3, 1)]), st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_every_way_attends_to_the_same_slots(
    shape: tuple[int, Tensor], heads: tuple[int, int], seed: int
) -> None:
    shared, own = shape
    torch.manual_seed(seed)
    slots = int(own[-1, -1]) + 1
    query, keys, values = (torch.randn(n, m, 8) for n, m in ((heads[0], len(own)), *2 * [(heads[1], slots)]))
    segment = Segment(KeyValues(1, slots), slots - len(own), len(own), shared, own)
    expected = reference(query, keys, values, segment.mask, 0.7).float()
    bias = torch.zeros(segment.mask.shape).masked_fill(~segment.mask, -torch.inf)
    for found in (
        fused_attention(query, keys, values, segment.mask, 0.7),
        attention_in_parts(query[None], keys[None], values[None], shared, own[None], 0.7)[0],
        attention_in_blocks(query, keys, values, bias, 0.7),
    ):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("known", [0, 37])
def test_a_prompt_longer_than_a_block(device: str, dtype: torch.dtype, tolerance: float, known: int) -> None:
    """The whole prompt, the rest of a prompt with a cached prefix, and beams after it."""
    torch.manual_seed(0)
    rows, d = 300, 16
    memory = KeyValues(1, known + rows + 5)
    written: list[Tensor] = []
    own = torch.tensor([[known + rows + k] for k in range(5)])
    segments = [
        Segment(memory, 0, known),
        Segment(memory, known, rows),
        Segment(memory, known + rows, 5, known + rows, own),
    ]
    for segment in segments:
        if not segment.rows:
            continue
        query = torch.randn(6, segment.rows, d, device=device, dtype=dtype)
        key, value = (torch.randn(2, segment.rows, d, device=device, dtype=dtype) for _ in range(2))
        written.append(torch.stack([key, value]))
        keys, values = torch.cat(written, 2)
        found = segment.attend(0, query, key, value, None).transpose(0, 1)
        expected = reference(query, keys, values, segment.mask.to(device), d**-0.5)
        assert (found.double() - expected).abs().max() < tolerance
