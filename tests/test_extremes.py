"""Values at the ends of the range: results may overflow, but they are never NaN."""

import functools

import fused_mi
import pytest
import torch
from cases import (
    DEVICE,
    FLOATING,
    MASK,
    gradients,
    leaves,
    mi,
    mi_inputs,
    value_and_gradients,
)
from marks import estimator, pairing
from oracle import TOTAL
from rules import assert_rule10

pytestmark = pytest.mark.every_backend


def no_nan(value, grads):
    return not torch.isnan(value).any() and not any(torch.isnan(g).any() for g in grads)


@estimator
@pairing
@pytest.mark.parametrize("sigma", [0.0, 1e-20, 1e20, 1e-30, 1e-40, -1e-20, 3e38])
@pytest.mark.parametrize("where", ["all", "samples", "components", "one"])
def test_extreme_sigma_gives_no_nan(estimator, pairing, sigma, where):
    inputs = mi_inputs(dtype=torch.float32, seed=1)
    rows = {"all": slice(None), "samples": slice(0, 3), "components": slice(3, None)}.get(where)
    if where == "one":
        inputs[1][4, 0, 1] = sigma
    else:
        inputs[1][rows] = sigma
    for centre in (False, True):  # y == c exactly: 0 / tiny, not 0 * inf
        if centre:
            inputs[0].zero_()
            inputs[3][:] = inputs[3][:1].clone()
            inputs[4] = inputs[3].clone()
        losses = {}
        call = functools.partial(mi, losses=losses, estimator=estimator, pairing=pairing)
        result = value_and_gradients(call, inputs)
        assert no_nan(*result)
        assert not any(torch.isnan(v) for v in losses.values())


@estimator
def test_huge_distances_give_no_nan(estimator):
    inputs = mi_inputs(dtype=torch.float64, seed=2)
    inputs[4][0] = 1e200
    losses = {}
    result = value_and_gradients(lambda t: mi(t, losses=losses, estimator=estimator), inputs)
    assert result[0] == torch.inf
    assert not any(torch.isnan(v) for v in losses.values())


@estimator
def test_one_hopeless_component_leaves_the_others(estimator):
    inputs = mi_inputs(dtype=torch.float64, seed=3)
    inputs[3][4] = 1e200
    value, grads = value_and_gradients(lambda t: mi(t, estimator=estimator), inputs)
    assert not torch.isnan(value)
    if estimator == "logsumexp":
        assert torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in grads)


@estimator
@pairing
def test_a_negative_sigma_is_its_square(estimator, pairing):
    inputs = mi_inputs(dtype=torch.float32, seed=4)
    options = {"estimator": estimator, "pairing": pairing}
    value, grads = value_and_gradients(lambda t: mi(t, **options), inputs)
    inputs[1] = -inputs[1]
    flipped, flipped_grads = value_and_gradients(lambda t: mi(t, **options), inputs)
    assert torch.equal(value, flipped)
    assert torch.equal(grads[1], -flipped_grads[1])
    assert torch.equal(grads[0], flipped_grads[0])


@estimator
@pairing
def test_zero_sigma_is_stabilised(estimator, pairing):
    options = {"estimator": estimator, "pairing": pairing, "safety_factor": 1e5}
    inputs = mi_inputs(dtype=torch.float32, seed=5)
    inputs[1][1, 0, 2] = 0.0
    inputs[1][4, 0, 1] = 0.0
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@estimator
def test_all_sigma_zero_uses_a_minimum_of_one(estimator):
    inputs = mi_inputs(seed=6)
    inputs[1].zero_()
    options = {"estimator": estimator, "safety_factor": 1e14}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@estimator
@pairing
def test_samples_exactly_on_a_centre(estimator, pairing):
    inputs = mi_inputs(dtype=torch.float32, seed=7)
    inputs[4] = (inputs[3] + inputs[0]).flip(0).contiguous()
    inputs[0].zero_()
    inputs[4][0] = inputs[3][5]
    options = {"estimator": estimator, "pairing": pairing}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@estimator
def test_duplicate_rows_share_one_gradient(estimator):
    inputs = [t[:1].expand(6, *t.shape[1:]).clone() for t in mi_inputs(seed=8)]
    value, grads = value_and_gradients(lambda t: mi(t, estimator=estimator), inputs)
    assert torch.isfinite(value)
    for grad in grads:
        for rows in (grad[:3], grad[3:]):
            assert torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-12, atol=1e-14)


def test_one_dominant_component_takes_all_responsibility():
    inputs = mi_inputs(b=6, seed=9)
    inputs[MASK][:] = True
    inputs[4][:3] = inputs[3][5] + inputs[0][5] + 1e-3 * torch.randn_like(inputs[4][:3])
    inputs[1][5] = 1e-3
    inputs[1][3:5] = 1.0
    options = {"estimator": "logsumexp"}
    assert_rule10(lambda t: mi(t, **options), inputs, options)
    _, grads = value_and_gradients(lambda t: mi(t, **options), inputs)
    assert (grads[2][3:5].abs() < 1e-8).all()


@estimator
@pytest.mark.parametrize("upstream", [0.0, -2.5, float("nan")])
def test_upstream_gradient(estimator, upstream):
    inputs = leaves(mi_inputs(dtype=torch.float32, seed=10))
    inputs[MASK][:, 1] = False
    value = mi(inputs, estimator=estimator)
    plain = gradients(value, inputs, retain_graph=True)
    scaled = gradients(value, inputs, grad_outputs=torch.full_like(value, upstream))
    for a, b in zip(plain, scaled, strict=True):
        if upstream == upstream:
            assert torch.allclose(b, a * upstream, rtol=1e-5, atol=1e-6)
        else:
            assert torch.isnan(b[a != 0]).all()
            assert (b[:, 1] == 0).all()


@pytest.mark.parametrize("kind", ["expanded", "nan", "zero", "transposed"])
def test_upstream_gradient_of_a_matrix(kind):
    means, stds, mask, clean, noisy = leaves(mi_inputs(b=4, seed=11))
    q = fused_mi.pairwise_square_mahalanobis_distance(noisy, clean + means, stds, mask)
    upstream = {
        "expanded": torch.ones(1, 1, dtype=torch.float64).expand(4, 4),
        "nan": torch.full((4, 4), torch.nan, dtype=torch.float64),
        "zero": torch.zeros(4, 4, dtype=torch.float64),
        "transposed": torch.arange(16, dtype=torch.float64).view(4, 4).t(),
    }[kind].to(DEVICE)
    (ours,) = torch.autograd.grad(q, noisy, upstream)
    diff = noisy[:, None] - (clean + means)[None]
    want = torch.where(
        mask[:, None, :, None], upstream[..., None, None] * diff / stds[None] ** 2, 0.0
    ).sum(1)
    torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-12, equal_nan=True)
    assert (ours[~mask] == 0).all()


@estimator
@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 2, 0), (2, 0, 0)])
def test_zero_sized_dimensions(estimator, shape):
    inputs = mi_inputs(*shape, dtype=torch.float32)
    losses = {}
    value, grads = value_and_gradients(lambda t: mi(t, losses=losses, estimator=estimator), inputs)
    assert value.item() == 0.0
    assert abs(losses[TOTAL].item()) == 0.0
    assert [g.shape for g in grads] == [inputs[i].shape for i in FLOATING]
