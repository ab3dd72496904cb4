"""The Monte Carlo entropy of a mixture."""

import math

import fused_mi
import pytest
import torch
from arguments import entropy_inputs
from cases import DEVICE, ESTIMATORS, REDUCTIONS, gradients, leaves
from marks import dtypes, estimator, options
from oracle import (
    ASSIGNMENT,
    ENTROPY,
    LOG_DETERMINANT,
    MAHALANOBIS,
    broadcast_energies,
    loop_energies,
    mixture_entropy,
)

pytestmark = pytest.mark.every_backend

every_option = options(estimator=ESTIMATORS, reduction=REDUCTIONS, combined=(True, False))


def run(inputs, component_mask, combined, losses=None, **options):
    given = component_mask if combined else None
    return fused_mi.gaussian_mixture_entropy(*inputs, losses, component_mask=given, **options)


def truth(inputs, component_mask, combined, dtype=torch.float64, **options):
    wide = [t.to(dtype) if t.dim() == 3 else t for t in inputs]
    return mixture_entropy(wide, component_mask=component_mask if combined else None, **options)


@every_option
@pytest.mark.parametrize("offset", [0.0, 1e3, 5e5])
def test_float64_value_entries_and_gradients(options, offset):
    inputs, component_mask = entropy_inputs(offset=offset)
    ours_in, true_in = leaves(inputs), leaves(inputs)
    losses = {}
    result = run(ours_in, component_mask, losses=losses, **options)
    true = truth(true_in, component_mask, **options)
    logsumexp = options["estimator"] == "logsumexp"
    assert set(losses) == {MAHALANOBIS, LOG_DETERMINANT} | ({ASSIGNMENT} if logsumexp else set())
    scale = sum(abs(v.item()) for v in true.values())
    for name, entry in [*losses.items(), (ENTROPY, result)]:
        assert entry.shape == ()
        assert entry.dtype == torch.float64
        assert abs((entry - true[name]).item()) <= 1e-11 * scale, name
        ours_grads = gradients(entry, ours_in, retain_graph=True, materialize_grads=True)
        true_grads = gradients(true[name], true_in, retain_graph=True, materialize_grads=True)
        largest = max(g.abs().max().item() for g in true_grads)
        for a, b in zip(ours_grads, true_grads, strict=True):
            assert (a - b).abs().max().item() <= 1e-11 * largest, name
    assert abs((sum(losses.values()) - result).item()) <= 1e-12 * scale


@every_option
@dtypes(torch.float32, torch.float16, torch.bfloat16)
def test_lower_precision(options, dtype):
    inputs, component_mask = entropy_inputs(dtype=dtype)
    ours_in, naive_in, true_in = leaves(inputs), leaves(inputs), leaves(inputs, torch.float64)
    ours = run(ours_in, component_mask, **options)
    kwargs = dict(eps_dtype=torch.float32, **options)
    naive = truth(
        naive_in, component_mask, dtype=torch.float32, energies=broadcast_energies, **kwargs
    )
    true = truth(true_in, component_mask, energies=loop_energies, **kwargs)
    assert ours.dtype == torch.float32
    results = [
        [ours, *gradients(ours, ours_in)],
        [naive[ENTROPY], *gradients(naive[ENTROPY], naive_in)],
    ]
    results += [[true[ENTROPY], *gradients(true[ENTROPY], true_in)]]
    for a, b, c in zip(*results, strict=True):
        floor = 8 * torch.finfo(a.dtype).eps * c.abs().max()
        assert (a.double() - c).abs().max() <= 2 * (b.double() - c).abs().max() + floor


@estimator
def test_sum_is_n_times_mean(estimator):
    inputs, component_mask = entropy_inputs()
    means = run(inputs, component_mask, True, estimator=estimator)
    sums = run(inputs, component_mask, True, estimator=estimator, reduction="sum")
    assert sums.item() == pytest.approx(4 * means.item(), rel=1e-13)
    assert torch.equal(
        means, run(inputs, component_mask, True, estimator=estimator, reduction="mean")
    )


def test_jensen_is_the_default_and_an_upper_bound():
    inputs, component_mask = entropy_inputs()
    default = run(inputs, component_mask, False)
    assert torch.equal(default, run(inputs, component_mask, False, estimator="jensen"))
    assert default > run(inputs, component_mask, False, estimator="logsumexp")


@estimator
def test_one_gaussian_gives_its_negative_log_density(estimator):
    inputs, _ = entropy_inputs(m=1)
    inputs[4][:] = True
    clean, transformed, means, stds, _ = inputs
    density = torch.distributions.Normal(clean + means, stds).log_prob(transformed)
    ours = fused_mi.gaussian_mixture_entropy(*inputs, estimator=estimator)
    assert ours.item() == pytest.approx(-density.sum((1, 2)).mean().item(), rel=1e-11)


def test_equal_components_are_one_gaussian():
    inputs, _ = entropy_inputs(m=1)
    many = [
        inputs[0].expand(5, -1, -1),
        inputs[1],
        *(t.expand(5, -1, -1) for t in inputs[2:4]),
        inputs[4],
    ]
    for each in ESTIMATORS:
        one = fused_mi.gaussian_mixture_entropy(*inputs, estimator=each)
        five = fused_mi.gaussian_mixture_entropy(*many, estimator=each)
        assert five.item() == pytest.approx(one.item(), rel=1e-12)
    losses = {}
    fused_mi.gaussian_mixture_entropy(*many, losses, estimator="logsumexp")
    assert abs(losses[ASSIGNMENT].item()) < 1e-12


def test_the_assignment_entry_is_the_information_about_the_component():
    """Far apart: log M nats, and the entropy is log M above that of one component."""
    m, s, e = 4, 1, 2
    stds = torch.ones(m, s, e, dtype=torch.float64, device=DEVICE)
    clean = 1e3 * torch.arange(m, device=DEVICE)[:, None, None] * stds
    mask = torch.ones(m, s, dtype=torch.bool, device=DEVICE)
    losses = {}
    value = fused_mi.gaussian_mixture_entropy(
        clean, clean, torch.zeros_like(clean), stds, mask, losses, 0.0, estimator="logsumexp"
    )
    assert losses[ASSIGNMENT].item() == pytest.approx(math.log(m), rel=1e-12)
    assert value.item() == pytest.approx(math.log(m) + math.log(2 * math.pi) * s * e / 2, rel=1e-12)


def test_the_sample_mask_may_have_any_dtype():
    inputs, component_mask = entropy_inputs()
    before = run(inputs, component_mask, True)
    inputs[4] = inputs[4].to(torch.int64) * 7
    assert torch.equal(run(inputs, component_mask.to(torch.float16) * -2, True), before)


@estimator
def test_nothing_active(estimator):
    inputs, component_mask = entropy_inputs()
    inputs[4][:] = False
    fresh = leaves(inputs)
    value = run(fresh, component_mask, True, estimator=estimator)
    assert value.item() == 0
    assert all((g == 0).all() for g in gradients(value, fresh))
