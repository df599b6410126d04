"""A mesh of one process: what is refused, casts of FSDP2, steps that are refused, and the results of no mesh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.sharded_processes import SETTINGS, Model, train
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from gems import GEMS, GemsError, find_linears


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))


class Experts(nn.Module):
    """Experts in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 8, 12))


def test_weights_that_are_sharded_by_columns_are_refused_unless_their_rows_are_columns(
    mesh: DeviceMesh,
) -> None:
    model = network()
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(p.ndim - 1))
    with pytest.raises(GemsError, match=r"0\.weight \(16, 12\) is placed as .*shard it on dimension 0"):
        GEMS(model, lr=1e-2, rank=2)
    before = model[0].weight.full_tensor().clone()
    only = {"0.weight": model[0]}  # more outputs than inputs: bases of outputs, and the rows are the inputs
    optimizer = GEMS(model, lr=1e-2, rank=2, output_bases=True, linears=only, stagger=1)
    for _ in range(2):
        model(torch.ones(3, 12)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model[0].weight.full_tensor(), before)


def test_bases_of_outputs_of_a_weight_that_is_sharded_by_outputs_are_refused(mesh: DeviceMesh) -> None:
    model = network()
    fully_shard(model, mesh=mesh)
    with pytest.raises(GemsError, match="shard it on dimension 1"):
        GEMS(model, lr=1e-2, rank=2, output_bases=True)


def test_a_mesh_of_two_dimensions_is_refused(mesh: DeviceMesh) -> None:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicas", "shards")))
    with pytest.raises(GemsError, match="a mesh of 2 dimensions"):
        GEMS(model, lr=1e-2, rank=2)


def test_stale_moments_are_refused(mesh: DeviceMesh) -> None:
    model = network()
    fully_shard(model, mesh=mesh)
    with pytest.raises(GemsError, match="leave transport on"):
        GEMS(model, lr=1e-2, rank=2, transport=False)


def test_sharded_experts_are_refused(mesh: DeviceMesh) -> None:
    model = nn.Sequential(network(), Experts())
    fully_shard(model[1], mesh=mesh)
    with pytest.raises(GemsError, match="leave their module out of fully_shard"):
        GEMS(model, lr=1e-2, rank=2)


def test_fsdp_adds_gradients_up_and_casts_as_it_is_told(mesh: DeviceMesh) -> None:
    model = Model()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    optimizer = GEMS(model, lr=1e-2, rank=2, linears=find_linears(model.blocks), stagger=1)
    assert all(
        module._get_fsdp_state()._fsdp_param_group.gradient_divide_factor == 1.0
        for module in model.modules()
        if isinstance(module, FSDPModule)
    )
    ids = torch.randint(0, 40, (16, 3))
    losses = []
    for _ in range(30):
        loss = (model(ids).float() - 1).square().mean()
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weights_that_a_forward_pass_has_left_whole_are_sharded_again(mesh: DeviceMesh) -> None:
    model = network()
    fully_shard(model, mesh=mesh)
    with torch.no_grad():
        model(torch.ones(3, 12))
    assert not isinstance(model[0].weight, DTensor)  # so that this test can fail
    optimizer = GEMS(model, lr=1e-2, rank=2)
    assert all(part.shard.sharded for weight in optimizer.weights for part in weight.parts)


def test_a_loss_that_is_not_finite_changes_nothing(mesh: DeviceMesh, tmp_path: Path) -> None:
    model = network()
    fully_shard(model, mesh=mesh)
    optimizer = GEMS(model, lr=1e-2, rank=2, stagger=1)
    before = {name: p.full_tensor().clone() for name, p in model.named_parameters()}
    for _ in range(2):  # one that refreshes, and the next
        model(torch.full((3, 12), float("nan"))).sum().backward()
        with pytest.raises(ArithmeticError):
            optimizer.step()
    assert all(torch.equal(p.full_tensor(), before[name]) for name, p in model.named_parameters())


def test_a_mesh_of_one_process_is_one_process(mesh: DeviceMesh) -> None:
    one, other = train(0, 1, SETTINGS["sites"]), train(0, 1, SETTINGS["sites"], sharded=True)
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, other["weights"][name], rtol=0, atol=1e-12), name
