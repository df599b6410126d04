"""The knowledge basis: tokens that count, layers that share inputs, kept directions, and the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.bundles import make_model
from torch import Tensor, nn

from gems import GEMS, GemsError, KnowledgeBasis, collect_knowledge, find_linears
from gems.model.knowledge import fingerprint


class TokenWise(nn.Module):
    """Two linear layers on each token separately: a token does not change the outputs of other tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 10)
        self.inner = nn.Linear(10, 12)
        self.outer = nn.Linear(12, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        output: Tensor = self.outer(torch.relu(self.inner(self.embedding(input_ids))))
        return output


def tokens(*shape: int, seed: int = 0, most: int = 50) -> Tensor:
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(seed))


def spectrum(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of Σ x xᵀ over rows, descending, in fp64."""
    rows = inputs.detach().reshape(-1, inputs.shape[-1]).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return values.flip(0), vectors.flip(1)


def same_bases(a: KnowledgeBasis, b: KnowledgeBasis, *, exactly: bool = True) -> bool:
    sites = a.site_of == b.site_of and a.tokens == b.tokens
    for weight, site in a.site_of.items():
        pairs = [
            (a.eigenvalues[site], b.eigenvalues[b.site_of[weight]]),
            (a.directions(weight, 0.9, 5), b.directions(weight, 0.9, 5)),
        ]
        sites &= all(torch.equal(x, y) if exactly else torch.allclose(x, y, atol=1e-5) for x, y in pairs)
    return sites


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(1, 6), st.floats(0.05, 1.0), st.integers(0, 100))
def test_streamed_moments_are_the_direct_ones_and_energy_takes_the_fewest_directions(
    n: int, batches: int, energy: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(n, 7))
    mixing = torch.randn(n, n, generator=rng) * 0.7 ** torch.arange(n)
    data = [torch.randn(5 + k, n, generator=rng) @ mixing for k in range(batches)]
    basis = collect_knowledge(model, data, find_linears(model), keep=1.0)
    values, vectors = spectrum(torch.cat(data))
    assert basis.tokens == sum(len(batch) for batch in data)
    assert torch.allclose(basis.eigenvalues["0"], values, atol=1e-5 * float(values[0]))
    k = basis.size("0.weight", energy, n)
    held = float(values[:k].sum() / values.sum())
    assert held >= energy - 1e-5
    assert k == 1 or float(values[: k - 1].sum() / values.sum()) < energy + 1e-5
    assert basis.size("0.weight", energy, 1) == 1  # the limit
    assert basis.size("0.weight", 0.0, n) == 0
    chosen = basis.directions("0.weight", energy, n).double()
    assert chosen.shape == (n, k)
    assert torch.allclose(chosen.T @ chosen, torch.eye(k, dtype=torch.float64), atol=1e-5)
    captured = float((torch.cat(data).double() @ chosen).square().sum() / values.sum())
    assert captured == pytest.approx(held, abs=1e-5)
    gap = float(values[k - 1] - values[k]) if k < n else 1.0
    if gap > 1e-2 * float(values[0]):  # then the subspace is determined
        assert torch.allclose(chosen @ chosen.T, vectors[:, :k] @ vectors[:, :k].T, atol=1e-3)


@pytest.mark.parametrize("arch", ["llama", "gpt-neox"])
def test_every_layer_of_a_transformer_gets_the_moments_of_its_own_inputs(arch: str) -> None:
    model = make_model(97, arch)
    linears = find_linears(model)
    data = [{"input_ids": tokens(3, 11, seed=seed, most=97)} for seed in range(2)]
    heard: dict[str, list[Tensor]] = {name: [] for name in linears}
    hooks = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: heard[name].append(inputs[0][:, 2:]))
        for name, linear in linears.items()
    ]
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for hook in hooks:
        hook.remove()
    basis = collect_knowledge(model, data, linears, skip_positions=2)
    assert basis.tokens == 2 * 3 * 9
    assert set(basis.site_of) == set(linears)
    for name in linears:
        inputs = torch.cat(heard[name])
        values, _ = spectrum(inputs)
        found = basis.eigenvalues[basis.site_of[name]]
        assert torch.allclose(found, values, atol=1e-5 * float(values[0])), name
        known = basis.directions(name, 0.6, 16).double()
        share = float((inputs.double() @ known).square().sum() / values.sum())
        assert share == pytest.approx(float(values[: known.shape[1]].sum() / values.sum()), abs=1e-5)


def test_layers_that_read_the_same_input_share_a_site() -> None:
    for arch, together, alone in (
        (
            "llama",
            [
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                ["mlp.gate_proj", "mlp.up_proj"],
            ],
            ["self_attn.o_proj", "mlp.down_proj"],
        ),
        # parallel residual: attention and mlp have a norm each, so nothing is shared
        ("gpt-neox", [], ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h"]),
    ):
        model = make_model(97, arch)
        linears = find_linears(model)
        basis = collect_knowledge(model, [{"input_ids": tokens(2, 9, most=97)}], linears)
        layers = sorted(
            {name.split(".self_attn")[0].split(".attention")[0].split(".mlp")[0] for name in linears}
        )
        assert len(layers) == 2
        sites = set()
        for layer in layers:
            for names in together:
                found = {basis.site_of[f"{layer}.{name}.weight"] for name in names}
                assert len(found) == 1, names
                sites |= found
            for name in alone:
                site = basis.site_of[f"{layer}.{name}.weight"]
                assert [w for w, s in basis.site_of.items() if s == site] == [f"{layer}.{name}.weight"]
                sites.add(site)
        assert sites <= set(basis.eigenvalues)
        assert len(basis.eigenvalues) == 8  # 2 layers of 4 sites: no moment is held twice


def test_a_layer_that_is_used_twice_has_the_inputs_of_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.again = nn.Linear(6, 6)
            self.beside = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            once = self.again(x) + (self.beside(x) if self.first else 0)
            once = torch.tanh(once)
            beside = 0 if self.first else self.beside(once)
            output: Tensor = self.again(once) + beside
            return output

    x = torch.randn(20, 6)
    for first in (True, False):  # `beside` reads what `again` reads first, or second
        model = Twice()
        model.first = first  # type: ignore[assignment]
        basis = collect_knowledge(model, [x], find_linears(model))
        once = torch.tanh(model.again(x) + (model.beside(x) if first else 0))
        for name, inputs in (("again", torch.cat([x, once])), ("beside", x if first else once)):
            expected = spectrum(inputs)[0]
            found = basis.eigenvalues[basis.site_of[f"{name}.weight"]]
            assert torch.allclose(found, expected, atol=1e-4), (name, first)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_the_first_tokens_do_not_count(side: str) -> None:
    model = TokenWise()
    linears = find_linears(model)
    real = tokens(4, 8)
    lengths = torch.tensor([8, 5, 3, 2])
    mask = (torch.arange(8) < lengths[:, None]).long()
    if side == "left":
        mask = mask.flip(1)
    basis = collect_knowledge(model, [{"input_ids": real, "attention_mask": mask}], linears, skip_positions=2)
    counted = (mask > 0) & (mask.cumsum(1) > 2)
    assert basis.tokens == int(counted.sum()) == 6 + 3 + 1 + 0
    values, _ = spectrum(model.embedding(real[counted]))
    assert torch.allclose(basis.eigenvalues["inner"], values, atol=1e-4)
    other = torch.where(counted, real, tokens(4, 8, seed=9))  # other padding, other first tokens
    assert not torch.equal(other, real)
    again = collect_knowledge(
        model, [{"input_ids": other, "attention_mask": mask}], linears, skip_positions=2
    )
    assert same_bases(basis, again)
    moved = real.clone()
    moved[0, 5] += 1  # and one that does count
    changed = collect_knowledge(
        model, [{"input_ids": moved % 50, "attention_mask": mask}], linears, skip_positions=2
    )
    assert not same_bases(basis, changed)
    everything = collect_knowledge(model, [{"input_ids": real}], linears, skip_positions=0)
    assert everything.tokens == 32


def test_batches_may_be_of_other_lengths() -> None:
    model = TokenWise()
    linears = find_linears(model)
    data = [{"input_ids": tokens(2, 9)}, {"input_ids": tokens(1, 4, seed=1)}]
    basis = collect_knowledge(model, data, linears)
    assert basis.tokens == 2 * 8 + 3


def test_one_site_at_a_time_gives_the_same() -> None:
    model = make_model(97, "llama")
    linears = find_linears(model)
    data = [{"input_ids": tokens(2, 9, seed=seed, most=97)} for seed in range(3)]
    heard: list[tuple[int, int]] = []
    whole = collect_knowledge(model, data, linears)
    parts = collect_knowledge(
        model, data, linears, sites_at_once=1, progress=lambda done, of: heard.append((done, of))
    )
    assert same_bases(whole, parts)
    sites = len(whole.eigenvalues)
    assert heard == [(k + 1, 3 * sites) for k in range(3 * sites)]  # it did pass over the text once a site
    assert same_bases(whole, collect_knowledge(model, data, linears, sites_at_once=3))


def test_a_saved_basis_is_the_same_and_read_when_asked_for(tmp_path: Path) -> None:
    model = make_model(97, "llama")
    linears = find_linears(model)
    basis = collect_knowledge(model, [{"input_ids": tokens(3, 9, most=97)}], linears)
    path = tmp_path / "knowledge.safetensors"
    basis.save(path)
    loaded = KnowledgeBasis.load(path)
    assert same_bases(basis, loaded)
    assert loaded.backbone == basis.backbone
    loaded.check(linears)
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert same_bases(KnowledgeBasis.load(again), basis)
    # Directions that change in the file after it was opened are the changed ones: none was read before.
    late = KnowledgeBasis.load(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    first, end = header["directions.model.layers.0.mlp.down_proj"]["data_offsets"]
    start = 8 + int.from_bytes(raw[:8], "little")
    with path.open("r+b") as file:
        file.seek(start + first)
        file.write(bytes(end - first))
    assert not late.directions("model.layers.0.mlp.down_proj.weight", 0.5, 8).any()
    assert late.directions("model.layers.1.mlp.down_proj.weight", 0.5, 8).any()


def test_more_directions_than_were_kept_are_refused() -> None:
    model = TokenWise()
    basis = collect_knowledge(model, [{"input_ids": tokens(9, 9)}], find_linears(model), keep=0.2)
    assert basis.directions("inner.weight", 1.0, 2).shape == (10, 2)
    with pytest.raises(GemsError, match=r"keeps 2 directions of inner, 3 .*larger `keep`"):
        basis.directions("inner.weight", 1.0, 3)
    with pytest.raises(GemsError, match="nothing of other"):
        basis.directions("other.weight", 0.9, 3)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_keeps_its_mode_its_weights_and_no_hook(training: bool) -> None:
    model = TokenWise().train(training)
    before = fingerprint(model.inner)
    collect_knowledge(model, [{"input_ids": tokens(2, 9)}], find_linears(model))
    assert model.training is training
    with torch.no_grad():
        model.embedding.weight[3, 0] = float("nan")
    with pytest.raises(GemsError, match="not finite"):
        collect_knowledge(model, [{"input_ids": torch.full((2, 5), 3)}], find_linears(model))
    assert model.training is training
    assert fingerprint(model.inner) == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    model(tokens(2, 9))  # nobody listens any more


def test_dropout_is_off_while_listening() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).train()
    x = torch.randn(30, 6)
    basis = collect_knowledge(model, [x], find_linears(model))
    assert torch.allclose(basis.eigenvalues["1"], spectrum(x)[0], atol=1e-4)


def test_modules_that_were_frozen_in_eval_mode_stay_so() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    model[1].eval()
    collect_knowledge(model, [torch.randn(5, 6)], find_linears(model))
    assert [module.training for module in model] == [True, False, True]


def test_a_layer_that_general_text_does_not_use_is_named() -> None:
    model = TokenWise()
    model.spare = nn.Linear(4, 4)
    with pytest.raises(GemsError, match=r"spare\.weight was not used"):
        collect_knowledge(model, [{"input_ids": tokens(2, 9)}], find_linears(model))


def test_no_text_is_refused() -> None:
    model = TokenWise()
    with pytest.raises(GemsError, match="at least one batch"):
        collect_knowledge(model, [], find_linears(model))
    with pytest.raises(GemsError, match="no token"):  # one token a row, and the first of a row is skipped
        collect_knowledge(model, [{"input_ids": tokens(4, 1)}], find_linears(model))


def test_files_that_are_no_basis_are_refused(tmp_path: Path) -> None:
    model = TokenWise()
    good = tmp_path / "good.safetensors"
    collect_knowledge(model, [{"input_ids": tokens(2, 9)}], find_linears(model)).save(good)
    raw = good.read_bytes()
    header = raw[: 8 + int.from_bytes(raw[:8], "little")]
    cases = {
        "empty": b"",
        "text": b"not a basis at all, but long enough to hold a length",
        "half": raw[: len(raw) // 2],
        "header": header,
        "longer": raw + b"\0" * 8,
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(GemsError, match=f"{name} is no knowledge basis"):
            KnowledgeBasis.load(path)
    for name, about in (
        ("weights", None),
        ("list", {"site_of": "[1]", "backbone": "", "tokens": "1"}),
        ("word", {"site_of": '{"w": "w"}', "backbone": "", "tokens": "many"}),
        ("sites", {"site_of": '{"w": "elsewhere"}', "backbone": "", "tokens": "1"}),
        ("backbone", {"site_of": "{}", "tokens": "1"}),
    ):
        path = tmp_path / name
        save_file({"eigenvalues.w": torch.ones(3), "directions.w": torch.ones(3, 1)}, path, metadata=about)
        with pytest.raises(GemsError, match=f"{name} is no knowledge basis"):
            KnowledgeBasis.load(path)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(GemsError, match="is no knowledge basis"):
            KnowledgeBasis.load(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_of_one_weight_changes_the_fingerprint(dtype: torch.dtype) -> None:
    model = TokenWise().to(dtype)
    before = fingerprint(model.outer)
    bits = model.outer.weight.data.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits[2, 3] ^= 1
    assert fingerprint(model.outer) != before
    bits[2, 3] ^= 1
    assert fingerprint(model.outer) == before


def test_a_basis_serves_some_of_its_layers_too() -> None:
    model = TokenWise()
    linears = find_linears(model)
    basis = collect_knowledge(model, [{"input_ids": tokens(2, 9)}], linears)
    with torch.no_grad():
        model.outer.weight[0, 0] += 1
    basis.check({"inner.weight": linears["inner.weight"]})
    with pytest.raises(GemsError, match=r"other weights in outer\.weight"):
        basis.check(linears)


def test_a_plain_network_with_tensors_for_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    data = [torch.randn(10, 8), torch.randn(4, 3, 8)]  # rows, or rows of rows
    basis = collect_knowledge(model, data, find_linears(model))
    assert basis.tokens == 10 + 12  # no token is skipped where the batch does not say what a token is
    assert basis.site_of == {"0.weight": "0", "2.weight": "2"}
    inputs = torch.cat([batch.reshape(-1, 8) for batch in data])
    assert torch.allclose(basis.eigenvalues["0"], spectrum(inputs)[0], atol=1e-4)
    inner = torch.relu(model[0](inputs))
    assert torch.allclose(basis.eigenvalues["2"], spectrum(inner)[0], atol=1e-4)


def test_answers_to_general_text_stay_and_others_change() -> None:
    """Purpose of the basis: inputs inside it get the same output after training; at full energy exactly the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 5, bias=False))
    general = torch.randn(40, 4) @ torch.randn(4, 16)  # general inputs live in four directions
    special = torch.randn(40, 16)
    knowledge = collect_knowledge(model, [general], find_linears(model))
    before, other = model(general).detach(), model(special).detach()
    optimizer = GEMS(model, lr=1e-2, rank=4, knowledge=knowledge, energy=1.0, cap=0.25, refresh_every=5)
    for _ in range(40):
        optimizer.backward((model(special) - 3).square().mean())
        optimizer.step()
    assert float((model(general) - before).norm() / before.norm()) < 1e-5
    assert float((model(special) - other).norm() / other.norm()) > 0.1
