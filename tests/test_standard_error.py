"""The jackknife."""

import math

import fused_mi
import pytest
import torch
from cases import ESTIMATORS, mi

F64 = torch.float64


@pytest.mark.parametrize("count", [2, 5, 64])
def test_of_a_mean_it_is_the_standard_deviation_over_the_root(count):
    values = torch.randn(count, dtype=F64)
    found = fused_mi.standard_error(torch.mean, values)
    assert found.item() == pytest.approx(values.std().item() / math.sqrt(count), rel=1e-12)
    assert found.dtype == F64 and found.shape == ()


def test_of_several_numbers_at_once():
    values = torch.randn(9, 3)
    found = fused_mi.standard_error(lambda v: v.mean(0), values)
    torch.testing.assert_close(found, values.std(0) / 3)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("groups", [3, 4])
def test_groups(groups):
    """Of equal sizes the jackknife of their means; of others each counts by its rows."""
    values = torch.randn(12, dtype=F64)
    found = fused_mi.standard_error(torch.mean, values, groups=groups)
    means = values.view(-1, groups).mean(0)
    assert found.item() == pytest.approx(means.std().item() / math.sqrt(groups), rel=1e-12)


def test_groups_that_differ_in_size():
    """The variance of a mean, on average, whatever the groups."""
    gen = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 11, generator=gen, dtype=F64)
    squares = [fused_mi.standard_error(torch.mean, v, groups=4).square() for v in draws[:1500]]
    assert torch.stack(squares).mean().item() == pytest.approx(1 / 11, rel=0.1)


def test_no_graph_is_kept():
    values = torch.randn(5, requires_grad=True)
    assert not fused_mi.standard_error(torch.mean, values).requires_grad


def batch(rows, features, sigma, gen):
    x = torch.randn(rows, 1, features, generator=gen)
    stds = torch.full_like(x, sigma)
    y = x + stds * torch.randn(x.shape, generator=gen)
    return [torch.zeros_like(x), stds, torch.ones(rows, 1, dtype=torch.bool), x, y]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pairing", ["sub_batch", "leave_one_out"])
def test_samples_that_share_their_components(estimator, pairing):
    """The errors of 500 batches, beside what each batch says of its own."""
    gen, rows = torch.Generator().manual_seed(0), 64
    options = {"estimator": estimator, "pairing": pairing, "reduction": "mean"}
    groups = rows // 2 if pairing == "sub_batch" else None
    values, squares, naive = [], [], []
    for i in range(500):
        inputs = batch(rows, 16, 0.5, gen)
        values.append(mi(inputs, **options))
        if i < 40:
            found = fused_mi.standard_error(lambda *t: mi(t, **options), *inputs, groups=groups)
            squares.append(found.square())
            each = mi(inputs, **{**options, "reduction": "none"})
            naive.append(each.var() / len(each))
    true = torch.stack(values).std().item()
    jackknife, spread = (torch.stack(t).mean().sqrt().item() for t in (squares, naive))
    assert 0.9 * true < jackknife < 1.3 * true  # it errs upward where few components weigh
    assert spread < 0.9 * jackknife


@pytest.mark.parametrize(
    ("rows", "options", "error", "said"),
    [
        ((), {}, ValueError, r"^rows: expected at least one tensor, got none"),
        (([1.0, 2.0],), {}, TypeError, r"^rows\[0\]: expected a tensor, got list"),
        ((torch.ones(3), torch.ones(4)), {}, ValueError, r"^rows: expected as many .*\[3, 4\]"),
        ((torch.ones(3),), {"groups": 1}, ValueError, r"^groups: expected 2 to 3, .*, got 1"),
        ((torch.ones(3),), {"groups": 4}, ValueError, r"^groups: expected 2 to 3, .*, got 4"),
        ((torch.ones(1),), {}, ValueError, r"^groups: expected 2 to 1, "),
    ],
)
def test_errors(rows, options, error, said):
    with pytest.raises(error, match=said):
        fused_mi.standard_error(lambda *t: t[0].mean(), *rows, **options)
    with pytest.raises(TypeError, match=r"^estimate: expected a tensor, got float"):
        fused_mi.standard_error(lambda t: t.mean().item(), torch.ones(3))
