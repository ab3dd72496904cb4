"""Energies of all pairs against the loop, through the public matrix form and the internal one."""

import fused_mi
import pytest
import torch
from blocks import pairs
from cases import MASK, mi_inputs
from marks import dtypes
from oracle import Role, broadcast_energies, eps_of, loop_energies
from test_moments import energies, pair_arguments


def pairwise_inputs(n=4, m=3, s=5, e=3, dtype=torch.float64, offset=0.0):
    one, two = mi_inputs(n, s, e, dtype, 1, offset), mi_inputs(m, s, e, dtype, 2, offset)
    return one[4], two[3], two[1], one[MASK], two[MASK]


def oracle(y, centers, stds, mask, component_mask, eps, formula=loop_energies, dtype=torch.float64):
    y, centers, stds = y.to(dtype), centers.to(dtype), stds.to(dtype)
    components = Role((centers, torch.zeros_like(centers)), stds, component_mask, eps)
    return formula(Role((y,), None, mask, 0.0), components).q


@pytest.mark.parametrize("combined", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e3, 5e5])
@dtypes(torch.float64, torch.float32, torch.bfloat16)
def test_pairwise(combined, offset, dtype):
    y, centers, stds, mask, component_mask = pairwise_inputs(dtype=dtype, offset=offset)
    given = component_mask if combined else None
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    eps = eps_of(stds, given, 100.0, acc)
    ours = fused_mi.pairwise_square_mahalanobis_distance(y, centers, stds, mask, given)
    true = oracle(y, centers, stds, mask, given, eps)
    naive = oracle(y, centers, stds, mask, given, eps, broadcast_energies, acc)
    assert ours.shape == (4, 3)
    assert ours.dtype == acc
    if dtype == torch.float64:
        assert ((ours - true).abs() <= 1e-11 * true).all()  # all terms of q are >= 0
    else:
        bound = 2 * (naive.double() - true).abs().max() + 8 * torch.finfo(acc).eps * true
        assert ((ours.double() - true).abs() <= bound).all()


@pytest.mark.parametrize("combined", [True, False])
def test_gradients_with_any_upstream(combined):
    arguments = pairwise_inputs()
    upstream = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grads = []
    for ours in (True, False):
        y, centers, stds = (t.clone().requires_grad_() for t in arguments[:3])
        mask, given = arguments[3], arguments[4] if combined else None
        if ours:
            q = fused_mi.pairwise_square_mahalanobis_distance(y, centers, stds, mask, given)
        else:
            q = oracle(y, centers, stds, mask, given, eps_of(stds, given, 100.0, torch.float64))
        grads.append(torch.autograd.grad(q, (y, centers, stds), upstream))
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() <= 1e-11 * b.abs().max()


@pytest.mark.parametrize("exclude_diagonal", [False, True])
def test_the_three_energies(exclude_diagonal):
    arguments = pair_arguments(n=4, m=4)
    y, own, mask_i, eps_i, x, mu, stds, mask_l, eps_l = arguments
    want = loop_energies(
        Role((y,), own, mask_i, eps_i.item()), Role((x, mu), stds, mask_l, eps_l.item())
    )
    keep = torch.ones(4, 4, dtype=torch.bool)
    if exclude_diagonal:
        keep.fill_diagonal_(False)
    # Only the plain path leaves pairs (i, i) out where samples and components are different rows.
    with fused_mi.use_backend("reference"):
        found = energies(pairs, arguments, exclude_diagonal)
    for ours, true in zip(found, want, strict=True):
        torch.testing.assert_close(ours[keep], true[keep], rtol=1e-12, atol=1e-12)
        assert torch.isfinite(ours).all()


def test_identical_points_are_at_distance_zero_exactly():
    y, _, _, mask, _ = pairwise_inputs(n=3, m=3, dtype=torch.float32, offset=5e5)
    other = mi_inputs(3, 5, 3, torch.float32, 2)[1]
    with fused_mi.use_backend("reference"):
        q = fused_mi.pairwise_square_mahalanobis_distance(y, y, other, mask)
    assert (q.diagonal() == 0).all()
    # The kernels form y / sigma - c / sigma in one rounding: the square of that is what remains.
    q = fused_mi.pairwise_square_mahalanobis_distance(y, y, other, mask)
    assert (q.diagonal() < 1e-11).all()
    assert (q[~torch.eye(3, dtype=torch.bool)] > 0).all()


def test_pairs_without_a_shared_position_weigh_nothing():
    y, centers, stds, mask, component_mask = pairwise_inputs()
    mask[0], component_mask[1] = False, False
    mask[1], component_mask[2] = (
        torch.tensor([1, 1, 0, 0, 0]) > 0,
        torch.tensor([0, 0, 1, 1, 1]) > 0,
    )
    q = fused_mi.pairwise_square_mahalanobis_distance(y, centers, stds, mask, component_mask)
    assert (q[0] == 0).all()
    assert (q[:, 1] == 0).all()
    assert q[1, 2] == 0
    assert q[3, 0] > 0
    y = y.clone()
    y[0] = torch.nan
    poisoned = fused_mi.pairwise_square_mahalanobis_distance(y, centers, stds, mask, component_mask)
    assert torch.equal(q, poisoned)


def test_empty_batches_give_an_empty_matrix():
    y, centers, stds, mask, _ = pairwise_inputs()
    distance = fused_mi.pairwise_square_mahalanobis_distance
    assert distance(y[:0], centers, stds, mask[:0]).shape == (0, 3)
    assert distance(y, centers[:0], stds[:0], mask).shape == (4, 0)
    assert torch.equal(
        distance(y[:, :0], centers[:, :0], stds[:, :0], mask[:, :0]), torch.zeros(4, 3).double()
    )
