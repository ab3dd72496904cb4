"""Gradients of parameters, by every way that trainers share work, are those of one process."""

from typing import Any

import fused_mi
import pytest
import torch
from cases import ESTIMATORS, FLOATING, MASK, PAIRINGS, leaves, mi_inputs
from on_ranks import on_one, share
from pool import pool
from torch import nn

BATCH, POSITIONS, FEATURES = 12, 3, 6


class Noise(nn.Module):
    """A noise layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shift, self.scale = (nn.Linear(FEATURES, FEATURES) for _ in range(2))
        self.double()

    def forward(self, x, noise):
        mu, stds = 0.3 * self.shift(x), nn.functional.softplus(self.scale(x)) + 0.05
        return mu, stds, x + mu + stds * noise


def data():
    gen = torch.Generator().manual_seed(1)
    shape = BATCH, POSITIONS, FEATURES
    x, noise = (torch.randn(shape, generator=gen, dtype=torch.float64) for _ in range(2))
    return x, noise, torch.rand(shape[:2], generator=gen) < 0.7


def parameters_of_one(options):
    x, noise, mask = data()
    model = Noise()
    mu, stds, y = model(x, noise)
    value = fused_mi.mutual_information_sub_batch(mu, stds, mask, x, y, **options)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def train(rank, sizes, options, how, averaged):
    import torch.distributed as dist

    x, noise, mask = share(rank, data(), sizes)
    model = Noise()
    wrapped: Any
    if how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (len(sizes),)))
    else:
        wrapped = nn.parallel.DistributedDataParallel(model)
    group = fused_mi.Ranks(dist.group.WORLD, averaged=averaged)
    loss = fused_mi.MutualInformationLoss(group=group, **options)
    mu, stds, y = wrapped(x, noise)
    value = loss(mu, stds, mask, x, y)
    value.backward()
    grads = [p.grad for p in model.parameters()]
    grads = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return value.detach(), torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("sizes", [(6, 6), (5, 7), (4, 4, 4)])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parameters(estimator, pairing, reduction, how, sizes):
    options = {"estimator": estimator, "pairing": pairing, "reduction": reduction}
    value, wanted = parameters_of_one(options)
    for found, grads in pool(len(sizes)).run(train, sizes, options, how, None):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


def test_what_a_trainer_averages_and_is_not_told_is_a_wrong_gradient():
    _, wanted = parameters_of_one({})
    [(_, grads), _] = pool(2).run(train, (6, 6), {}, "ddp", 1)
    torch.testing.assert_close(2 * grads, wanted, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(grads, wanted)


def frozen(rank, inputs, sizes, options):
    """Rank 1 has nothing that needs a gradient."""
    import torch.distributed as dist

    mine = share(rank, inputs, sizes)
    if rank == 0:
        mine = leaves(mine)
    group = fused_mi.Ranks(dist.group.WORLD, averaged=1)
    value = fused_mi.mutual_information_sub_batch(*mine, group=group, **options)
    if value.requires_grad:
        value.backward()
    return value.detach(), [mine[i].grad for i in FLOATING]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_rank_without_gradients(estimator):
    inputs = mi_inputs(6, 2, 3)
    found = pool(2).run(frozen, inputs, (2, 4), {"estimator": estimator})
    _, grads, _ = on_one(inputs, estimator=estimator)
    for a, b in zip(found[0][1], grads, strict=True):
        torch.testing.assert_close(a, b[:2], rtol=1e-11, atol=1e-12)
    assert found[1][1] == [None] * 4


def subset(rank, inputs, sizes, options):
    """Only the stds need a gradient."""
    import torch.distributed as dist

    mine = share(rank, inputs, sizes)
    mine[1].requires_grad_()
    group = fused_mi.Ranks(dist.group.WORLD, averaged=1)
    fused_mi.mutual_information_sub_batch(*mine, group=group, **options).backward()
    return [mine[i].grad for i in FLOATING]


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_some_inputs_need_none(estimator, pairing):
    inputs, options = mi_inputs(6, 2, 3), {"estimator": estimator, "pairing": pairing}
    found = pool(2).run(subset, inputs, (3, 3), options)
    _, grads, _ = on_one(inputs, **options)
    torch.testing.assert_close(torch.cat([f[1] for f in found]), grads[1], rtol=1e-11, atol=1e-12)
    assert all(f[i] is None for f in found for i in (0, 2, 3))


def sharded(rank, inputs, dim, options):
    """Two ranks for the rows, two for the positions or features of each."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "shards"))
    row, shard = mesh.get_local_rank("rows"), mesh.get_local_rank("shards")
    mine = [
        t.chunk(2, 0)[row] if i == MASK and dim == 2 else t.chunk(2, 0)[row].chunk(2, dim)[shard]
        for i, t in enumerate(inputs)
    ]
    mine = leaves(mine)
    group = fused_mi.Ranks(mesh["rows"], mesh["shards"], averaged=1)
    losses = {}
    value = fused_mi.mutual_information_sub_batch(*mine, losses=losses, group=group, **options)
    value.backward()
    return value.detach(), [mine[i].grad for i in FLOATING]


@pytest.mark.parametrize("constant", ["keep", "subtract"])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_positions_and_features_are_shared_out(estimator, pairing, dim, constant):
    inputs = mi_inputs(8, 4, 6)
    options = {"estimator": estimator, "pairing": pairing, "constant": constant}
    found = pool(4).run(sharded, inputs, dim, options)
    value, grads, _ = on_one(inputs, **options)
    for of_rank, _ in found:
        torch.testing.assert_close(of_rank, value, rtol=1e-12, atol=1e-12)
    for i, wanted in enumerate(grads):
        rows = [torch.cat([found[2 * r + s][1][i] for s in range(2)], dim) for r in range(2)]
        torch.testing.assert_close(torch.cat(rows), wanted, rtol=1e-11, atol=1e-12)


def dtensors(rank, inputs, mesh_shape, kinds, options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    placements = [Replicate() if k is None else Shard(k) for k in kinds]
    of_mask = [Replicate() if k in (None, 2) else Shard(k) for k in kinds]
    mesh = init_device_mesh("cpu", mesh_shape)
    given = [
        distribute_tensor(t, mesh, of_mask if i == MASK else placements)
        for i, t in enumerate(inputs)
    ]
    for i in FLOATING:
        given[i].requires_grad_()
    value = fused_mi.mutual_information_sub_batch(*given, **options)
    value.backward()
    assert all(tuple(given[i].grad.placements) == tuple(placements) for i in FLOATING)
    return value.detach(), [given[i].grad.full_tensor() for i in FLOATING]


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("mesh", "kinds"),
    [((4,), (0,)), ((2, 2), (0, 1)), ((2, 2), (0, 2)), ((2, 2), (None, 0)), ((4,), (2,))],
)
def test_distributed_tensors(mesh, kinds, estimator, pairing):
    """Placements say who has what; gradients are distributed, and those of the loss itself."""
    inputs, options = mi_inputs(8, 4, 8), {"estimator": estimator, "pairing": pairing}
    value, grads, _ = on_one(inputs, **options)
    for found, of_rank in pool(4).run(dtensors, inputs, mesh, kinds, options):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
        for a, b in zip(of_rank, grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def compiled(rank, inputs, sizes, options):
    import torch.distributed as dist

    loss = fused_mi.MutualInformationLoss(
        group=fused_mi.Ranks(dist.group.WORLD, averaged=1), **options
    )
    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        mine = leaves(share(rank, inputs, sizes))
        value = function(*mine)
        value.backward()
        found.append([value.detach(), *(mine[i].grad for i in FLOATING)])
    return found


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_compiled_step_is_one_graph(pairing):
    inputs = mi_inputs(6, 2, 3)
    for eager, graph in pool(2).run(compiled, inputs, (2, 4), {"pairing": pairing}):
        assert all(torch.equal(a, b) for a, b in zip(eager, graph, strict=True))
