"""The loss of all ranks is that of one process that has all rows, however they are split."""

import fused_mi
import pytest
import torch
from cases import ESTIMATORS, FLOATING, MASK, PAIRINGS, leaves, mi_inputs
from on_ranks import nan_where_masked, on_one, on_ranks, share
from pool import pool
from rules import assert_by_rule10

SPLITS = [(4, 4), (1, 7), (8, 0), (3, 2, 3), (0, 8, 0), (1, 1, 6), (2, 2, 2, 2)]
ODD = [(3, 4), (1, 1, 5)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("combine", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("sizes", SPLITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_value_and_gradients(estimator, pairing, dtype, sizes, offset, combine, backend):
    inputs = mi_inputs(8, 3, 5, dtype, offset=offset)
    options = {"estimator": estimator, "pairing": pairing, "combine": combine}
    given = nan_where_masked(inputs) if combine else inputs  # else all components are active
    value, grads, _ = on_ranks(given, sizes, backend=backend, **options)
    assert_by_rule10(value, grads, inputs, options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without one")
@pytest.mark.parametrize(
    ("pairing", "sizes"), [("symmetric", (3, 1)), ("leave_one_out", (2, 2))], ids=str
)
def test_on_the_triton_kernels(pairing, sizes):
    """In their interpreter: what ranks send each other is of those kernels."""
    inputs = mi_inputs(4, 1, 5, torch.float32, offset=10.0)
    value, grads, _ = on_ranks(inputs, sizes, backend="triton", pairing=pairing)
    assert_by_rule10(value, grads, inputs, {"pairing": pairing})


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", ODD)
def test_leave_one_out_of_an_odd_batch(sizes, estimator):
    inputs = mi_inputs(sum(sizes), 2, 3, torch.float32)
    options = {"estimator": estimator, "pairing": "leave_one_out"}
    value, grads, _ = on_ranks(inputs, sizes, **options)
    assert_by_rule10(value, grads, inputs, options)


@pytest.mark.parametrize("offset", [0.0, 5e5])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_far_from_zero(pairing, offset):
    """What moments of float32 rows travel as keeps the digits of a difference."""
    inputs = mi_inputs(6, 2, 40, torch.float32, offset=offset)
    options = {"pairing": pairing, "reduction": "mean"}
    value, grads, _ = on_ranks(inputs, (2, 4), **options)
    assert_by_rule10(value, grads, inputs, options)


@pytest.mark.parametrize("position", range(2))
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_an_outlying_row(pairing, position):
    """A row of small or of large sigma is nearly all of the sums it is left out of."""
    inputs = mi_inputs(6, 1, 8, torch.float32)
    inputs[1][3] *= (1e-2, 1e2)[position]
    options = {"pairing": pairing}
    value, grads, _ = on_ranks(inputs, (3, 3), **options)
    assert_by_rule10(value, grads, inputs, options)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_rows_that_meet_nobody(pairing, estimator):
    """What is active in a single row, or on one side, has no influence on any rank."""
    inputs = mi_inputs(6, 4, 3, torch.float32)
    inputs[MASK][:] = True
    inputs[MASK][1:, 1] = False  # row 0 alone
    inputs[MASK][:3, 2] = False  # the second half alone
    inputs[MASK][:, 3] = False
    options = {"pairing": pairing, "estimator": estimator}
    value, grads, _ = on_ranks(inputs, (2, 1, 3), **options)
    assert_by_rule10(value, grads, inputs, options)
    poisoned = [t.clone() for t in inputs]
    for i in FLOATING:
        poisoned[i][0, 1] = torch.nan
    again, grads_again, _ = on_ranks(poisoned, (2, 1, 3), **options)
    assert torch.equal(value, again)
    for a, b in zip(grads, grads_again, strict=True):
        assert torch.equal(a, b)
        assert (a[0, 1] == 0).all()


@pytest.mark.parametrize("scale", [1e-18, 1e15])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_moments_beyond_float32(pairing, scale):
    """Weights 1 / v that float32 has no room for travel as float64."""
    inputs = [t * scale if t.is_floating_point() else t for t in mi_inputs(6, 2, 3, torch.float32)]
    value, grads, _ = on_ranks(inputs, (2, 4), pairing=pairing)
    exact, of_one, _ = on_one(inputs, pairing=pairing)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)
    for found, wanted in zip(grads, of_one, strict=True):
        atol = 1e-6 * wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("constant", ["keep", "subtract"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_entry_has_its_own_gradient(reduction, constant, pairing, estimator):
    inputs = mi_inputs(6, 3, 4)
    options = {
        "estimator": estimator,
        "pairing": pairing,
        "reduction": reduction,
        "constant": constant,
    }
    names = list(on_one(inputs, **options)[2])
    weights = {name: 0.3 + 0.7 * i for i, name in enumerate(names)}
    found, wanted = on_ranks(inputs, (1, 5), weights, **options), on_one(inputs, weights, **options)
    assert found[2].keys() == wanted[2].keys()
    for a, b in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    for name in names:
        torch.testing.assert_close(found[2][name], wanted[2][name], rtol=1e-12, atol=1e-12)


def _entropy(rank, tensors, sizes, options):
    import torch.distributed as dist

    clean, noisy, means, stds, mask, component_mask = tensors
    of_components = share(rank, (clean, means, stds, component_mask), [m for _, m in sizes])
    of_samples = share(rank, (noisy, mask), [n for n, _ in sizes])
    clean, means, stds = (t.requires_grad_() for t in of_components[:3])
    noisy = of_samples[0].requires_grad_()
    losses = {}
    value = fused_mi.gaussian_mixture_entropy(
        *(clean, noisy, means, stds, of_samples[1], losses),
        component_mask=of_components[3],
        group=fused_mi.Ranks(dist.group.WORLD, averaged=1),
        **options,
    )
    value.backward()
    return value.detach(), [t.grad for t in (clean, noisy, means, stds)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("sizes", [((2, 4), (3, 1)), ((0, 5), (5, 0)), ((1, 2), (0, 0), (4, 3))])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_entropy(estimator, sizes, reduction, masked):
    """Samples and components are split each in a way of its own."""
    means, stds, mask, clean, _ = mi_inputs(5, 3, 4)
    noisy, sample_mask = mi_inputs(5, 3, 4, seed=1)[4], mi_inputs(5, 3, 4, seed=1)[MASK]
    tensors = clean, noisy, means, stds, sample_mask, mask if masked else None
    options = {"estimator": estimator, "reduction": reduction}
    found = pool(len(sizes)).run(_entropy, tensors, sizes, options)
    whole = [t.clone().requires_grad_() for t in (clean, noisy, means, stds)]
    value = fused_mi.gaussian_mixture_entropy(
        *whole, sample_mask, component_mask=tensors[5], **options
    )
    value.backward()
    for i, t in enumerate(whole):
        grad = torch.cat([of_rank[1][i] for of_rank in found])
        torch.testing.assert_close(grad, t.grad, rtol=1e-11, atol=1e-12)
    for of_rank in found:
        torch.testing.assert_close(of_rank[0], value.detach(), rtol=1e-12, atol=1e-12)


def _samples(rank, inputs, sizes, options):
    import torch.distributed as dist

    mine, losses = share(rank, inputs, sizes), {}
    value = fused_mi.mutual_information_sub_batch(
        *mine, True, losses, reduction="none", group=dist.group.WORLD, **options
    )
    return value, losses


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("sizes", [(4, 2), (1, 5), (0, 3, 3)])
def test_single_samples(sizes, pairing, estimator):
    inputs = mi_inputs(6, 2, 3)
    options = {"pairing": pairing, "estimator": estimator, "constant": "subtract"}
    found = pool(len(sizes)).run(_samples, inputs, sizes, options)
    losses = {}
    wanted = fused_mi.mutual_information_sub_batch(
        *inputs, True, losses, reduction="none", **options
    )
    torch.testing.assert_close(torch.cat([v for v, _ in found]), wanted, rtol=1e-12, atol=1e-12)
    for name, entry in losses.items():
        of_ranks = torch.cat([of_rank[name] for _, of_rank in found])
        torch.testing.assert_close(of_ranks, entry, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_repeats_are_bit_equal(pairing, estimator):
    inputs = mi_inputs(6, 3, 50, torch.float32)
    options = {"pairing": pairing, "estimator": estimator}
    first, second = (on_ranks(inputs, (2, 3, 1), **options) for _ in range(2))
    for a, b in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        assert torch.equal(a, b)


def _alone(rank, inputs, options):
    import torch.distributed as dist

    mine = leaves(inputs)
    value = fused_mi.mutual_information_sub_batch(*mine, group=dist.group.WORLD, **options)
    value.backward()
    return value.detach(), [mine[i].grad for i in FLOATING]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_of_one_is_no_group(estimator):
    inputs = mi_inputs(6, 3, 5, torch.float32)
    [(value, grads)] = pool(1).run(_alone, inputs, {"estimator": estimator})
    wanted, of_one, _ = on_one(inputs, estimator=estimator)
    assert torch.equal(value, wanted)
    for a, b in zip(grads, of_one, strict=True):
        assert torch.equal(a, b)


def _with_sizes(rank, inputs, sizes, told):
    import torch.distributed as dist

    group = fused_mi.Ranks(dist.group.WORLD, sizes=told)
    mine = share(rank, inputs, sizes)
    return fused_mi.mutual_information_sub_batch(*mine, group=group)


def test_sizes_that_are_told_are_not_asked():
    inputs = mi_inputs(6, 3, 5, torch.float32)
    found = pool(2).run(_with_sizes, inputs, (2, 4), (2, 4))
    asked = pool(2).run(_with_sizes, inputs, (2, 4), None)
    assert all(torch.equal(a, b) for a, b in zip(found, asked, strict=True))


def _skipped(rank, inputs, sizes):
    import torch.distributed as dist

    loss = fused_mi.MutualInformationLoss(small_batch="skip", group=dist.group.WORLD)
    mine, losses = leaves(share(rank, inputs, sizes)), {}
    value = loss(*mine, losses=losses)
    value.backward()
    return value.detach(), [mine[i].grad for i in FLOATING], list(losses)


def test_a_remainder_of_one_row_is_skipped():
    inputs = mi_inputs(1, 2, 3, torch.float32)
    for value, grads, losses in pool(2).run(_skipped, inputs, (1, 0)):
        assert value == 0
        assert "mutual_information_loss" in losses
        assert all((g == 0).all() for g in grads)
