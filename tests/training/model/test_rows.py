"""Added rows as separate weights: the same losses and gradients, and no other weight changes."""

from __future__ import annotations

import pytest
import torch
from support.bundles import make_model
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM

from index.sequence.vocabulary import IdentifierVocabulary
from training.errors import UserError
from training.loop.losses import item_losses
from training.loop.parts import Part
from training.model.rows import AddedRows

KNOWN = 50
VOCABULARY = IdentifierVocabulary(KNOWN, (6, 4))


def a_part() -> Part:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, KNOWN, (3, 12), generator=rng)
    level = torch.full((3, 12), -1, dtype=torch.int8)
    for j, size in enumerate(VOCABULARY.codebook_sizes):
        for start in (3, 8):
            ids[:, start + j] = int(VOCABULARY.first_code[j]) + torch.randint(0, size, (3,), generator=rng)
            level[:, start + j] = j
    task = torch.zeros(3, 12, dtype=torch.int8)
    task[:, 6:] = 1
    return Part(ids, level, task, torch.full(ids.shape, -1))


def gradients_of_both(
    arch: str, normalisation: str, *, train_known: bool
) -> tuple[AddedRows, nn.Module, list[nn.Parameter]]:
    """Compare the loss of a model with rows of their own with that of a whole one, and compute both gradients.

    Returns the rows and their model, and the tables of the whole one.
    """
    plain, split = (make_model(VOCABULARY.size, arch) for _ in range(2))
    rows = AddedRows(split, KNOWN, train_known=train_known)
    expected = sum(item_losses(plain, VOCABULARY, a_part(), normalisation).values())
    found = sum(item_losses(split, VOCABULARY, a_part(), normalisation, rows).values())
    assert torch.allclose(found, expected, atol=1e-6)
    expected.backward()
    found.backward()
    return rows, split, [plain.get_input_embeddings().weight, plain.get_output_embeddings().weight]


@pytest.mark.parametrize("arch", ["llama", "gpt-neox"])  # tied and untied
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
def test_losses_and_gradients_are_those_of_the_whole_table(arch: str, normalisation: str) -> None:
    rows, split, tables = gradients_of_both(arch, normalisation, train_known=False)
    assert len(rows.parameters) == (1 if arch == "llama" else 2)
    for parameter, table in zip(rows.parameters, tables, strict=False):
        assert torch.allclose(parameter.grad, table.grad[KNOWN:], atol=1e-6)
        assert parameter.grad.abs().sum() > 0
    assert split.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("arch", ["llama", "gpt-neox"])
def test_an_update_of_the_rows_is_in_the_model_at_once(arch: str) -> None:
    model = make_model(VOCABULARY.size, arch)
    before = model.get_input_embeddings().weight.detach().clone()
    rows = AddedRows(model, KNOWN)
    optimizer = torch.optim.AdamW(rows.parameters, lr=0.1, weight_decay=0.0)
    first = sum(item_losses(model, VOCABULARY, a_part(), "level", rows).values())
    first.backward()
    optimizer.step()
    after = model.get_input_embeddings().weight
    assert torch.equal(after[:KNOWN], before[:KNOWN])
    assert not torch.equal(after[KNOWN:], before[KNOWN:])
    with torch.inference_mode():  # as in the engine and validation: without the rows
        again = sum(item_losses(model, VOCABULARY, a_part(), "level").values())
    assert float(again) < float(first.detach())
    assert torch.allclose(
        again, sum(item_losses(model, VOCABULARY, a_part(), "level", rows).values()), atol=1e-6
    )


@pytest.mark.parametrize("arch", ["llama", "gpt-neox"])
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
def test_known_rows_have_the_gradient_of_the_whole_table(arch: str, normalisation: str) -> None:
    rows, _, tables = gradients_of_both(arch, normalisation, train_known=True)
    for added, known, table in zip(rows.parameters, rows.known, tables, strict=False):
        assert torch.allclose(added.grad, table.grad[KNOWN:], atol=1e-6)
        gradient = torch.zeros_like(known) if known.grad is None else known.grad
        assert torch.allclose(gradient, table.grad[:KNOWN], atol=1e-6)
    assert rows.known[0].grad.abs().sum() > 0


@pytest.mark.parametrize("train_known", [False, True])
def test_rows_of_a_scaled_embedding_are_read_scaled(train_known: bool) -> None:
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=VOCABULARY.size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    model = GemmaForCausalLM(config)
    expected = sum(item_losses(model, VOCABULARY, a_part(), "level").values())
    rows = AddedRows(model, KNOWN, train_known=train_known)
    found = sum(item_losses(model, VOCABULARY, a_part(), "level", rows).values())
    assert torch.allclose(found, expected, atol=1e-6)


def test_an_embedding_that_computes_something_else_is_refused() -> None:
    class Squared(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids).square()

    model = make_model(VOCABULARY.size, "llama")
    model.get_input_embeddings().__class__ = Squared
    with pytest.raises(UserError, match="Squared, does more than look up rows"):
        AddedRows(model, KNOWN)
