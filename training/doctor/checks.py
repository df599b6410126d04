"""Tiny trainings and rankings on a device, compared with the CPU in float64."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.trie import Trie
from server.engine.contract import RankRequest
from server.engine.options import DEFAULTS, TRAINING, EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from training.config import TrainConfig
from training.loop.losses import item_losses
from training.methods.registry import make_method
from training.model.precision import Precision, forward_under
from training.plan.plan import part_of

TEXT, CODES, LEVELS, ITEMS, WIDTH = 64, 16, 2, 60, 64
PROMPTS = [list(range(3, 40)), list(range(50, 20, -2))]
STEPS = 3  # of which each refreshes the bases
CLOSE, ROUGH = 1e-3, 0.1  # largest relative difference from float64, in float32 and with products in bfloat16
FASTER_GRAPHS = 8


@dataclass(frozen=True)
class Check:
    """Result of a check. error: what is wrong, empty if nothing is."""

    name: str
    device: str
    error: str
    seconds: float


def device_checks(
    device: torch.device, progress: Callable[[str], None] = lambda name: None
) -> list[dict[str, Any]]:
    """Run every check on a device, each by itself, and return their results, JSON-ready.

    progress: called with the name of each check before it runs.
    """
    checks: dict[str, Callable[[torch.device], str]] = {
        "training step and refresh, float32": lambda where: _trains(where, "float32"),
        "training step and refresh, autocast": lambda where: _trains(where, "autocast"),
        "training step and refresh, bfloat16 weights": lambda where: _trains(where, "bfloat16"),
        "engine": lambda where: _ranks(where, TRAINING),
        "engine, packed weights": lambda where: _ranks(where, replace(DEFAULTS, device=_kind(where))),
    }
    if device.type == "cuda":
        captured = replace(DEFAULTS, device="cuda", cuda_graphs=FASTER_GRAPHS)
        checks["engine, captured graphs"] = lambda where: _ranks(where, captured)
    found = []
    for name, check in checks.items():
        progress(name)
        begin = time.perf_counter()
        try:
            error = check(device)
        except (
            Exception
        ) as broken:  # whatever a driver or a library raises: the next check is of another part
            error = f"{type(broken).__name__}: {' '.join(str(broken).split())[:300]}"
        found.append(asdict(Check(name, str(device), error, round(time.perf_counter() - begin, 3))))
    return found


def tiny_model(dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, IdentifierVocabulary]:
    """Return a model of two layers with the same random weights everywhere, and its identifier tokens."""
    torch.manual_seed(0)
    vocabulary = IdentifierVocabulary(TEXT, (CODES,) * LEVELS)
    config = LlamaConfig(
        vocab_size=vocabulary.size, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device=device, dtype=dtype), vocabulary


def steps(device: torch.device, dtype: torch.dtype, precision: Precision = "float32") -> Tensor:
    """Make steps of GEMS. Return their losses and the norms of all weights, float64 on the CPU."""
    model, vocabulary = tiny_model(dtype, device)
    config = TrainConfig.load(
        None, {"gems.refresh_every": 1, "gems.stagger": 1, "knowledge.null_space": False}
    )
    method = make_method(model, config, vocabulary.first_added)
    if precision == "bfloat16":
        method.narrow()  # type: ignore[attr-defined]
    part = part_of(model, vocabulary, 4, 48)
    found = []
    for _ in range(STEPS):
        with forward_under(model, precision):
            losses = item_losses(model, vocabulary, part, "level", method.rows)
        method.backward(losses, dict.fromkeys(losses, 1 / len(losses)))
        found += [loss.detach().double().cpu() for loss in losses.values()]
        method.step(1e-3)
    return torch.stack([*found, *(p.detach().double().norm().cpu() for p in model.parameters())])


def _trains(device: torch.device, precision: Precision) -> str:
    exact = steps(torch.device("cpu"), torch.float64)
    return _differs(
        steps(device, torch.float32, precision), exact, CLOSE if precision == "float32" else ROUGH
    )


def _ranks(device: torch.device, options: EngineOptions) -> str:
    model, vocabulary = tiny_model(torch.float32, device)
    engine = TorchEngine(model, Trie.build(_codes()), vocabulary, options=options)
    requests = [RankRequest(prompt, limit=ITEMS, beam_width=ITEMS) for prompt in PROMPTS]
    found = torch.full((len(PROMPTS), ITEMS), torch.nan, dtype=torch.float64)
    for row, ranking in zip(found, engine.rank(requests), strict=True):
        row[torch.as_tensor(ranking.items)] = torch.as_tensor(ranking.scores).double()
    return _differs(found, _exact_scores(), CLOSE)


def _codes() -> NDArray[np.int32]:
    """Return the identifiers of the items, [ITEMS, LEVELS]."""
    chosen = np.random.default_rng(0).permutation(CODES**LEVELS)[:ITEMS]
    return np.stack(np.divmod(chosen, CODES), axis=1).astype(np.int32)


@torch.no_grad()
def _exact_scores() -> Tensor:
    """Return log p(identifier | prompt) of every item by plain passes, float64 [prompts, ITEMS]."""
    model, vocabulary = tiny_model(torch.float64, torch.device("cpu"))
    tokens = torch.from_numpy(_codes().astype(np.int64) + vocabulary.first_code[:LEVELS])
    scores = torch.zeros(len(PROMPTS), ITEMS, dtype=torch.float64)
    for row, prompt in zip(scores, PROMPTS, strict=True):
        ids = torch.cat([torch.tensor(prompt).expand(ITEMS, -1), tokens], dim=1)
        logits = model(input_ids=ids).logits
        for level in range(LEVELS):
            first, last = vocabulary.span(level)
            chances = logits[:, len(prompt) - 1 + level, first:last].log_softmax(-1)
            row += chances.gather(1, tokens[:, level : level + 1] - first).squeeze(1)
    return scores


def _differs(found: Tensor, exact: Tensor, most: float) -> str:
    error = float(((found - exact).abs() / exact.abs().clamp(min=1e-3)).max())
    if error <= most:  # not so for NaN
        return ""
    return f"the largest relative difference from float64 on the CPU is {error:.2g}, more than {most:g}"


def _kind(device: torch.device) -> Any:
    return "cuda" if device.type == "cuda" else "cpu"
