"""The Triton kernels where the rows of a role are one group: no state, and the moments formed again
in the backward pass."""

import fused_mi
import numpy as np
import pytest
import torch
from cases import (
    assert_same_bits,
    evaluate,
    fresh_memory_full_of_nan,
    gradients,
    leaves,
    mi,
    mi_inputs,
    scoring_of,
)
from fused_mi import use_backend
from fused_mi.triton_kernels import _one_group, _one_group_backward
from fused_mi.triton_kernels._launch import recorded
from fused_mi.triton_kernels.estimators import jensen, jensen_backward
from rules import assert_rule10
from test_moments_rows import CASES, approximate, errors
from test_traffic import NAMES, accesses, assert_modelled, run

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
pairing = pytest.mark.parametrize("pairing", ["sub_batch", "symmetric"])
combine = pytest.mark.parametrize("combine", [True, False])
KERNELS = ("one_group_kernel", "one_group_gradient_kernel")


@pytest.fixture(autouse=True)
def _forced():
    with use_backend("triton"):
        yield


def assert_loss(inputs, **options):
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@pairing
@combine
@pytest.mark.parametrize("rows", [2, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_masks_and_dtypes(pairing, combine, rows, dtype):
    """One row, three and four; positions at which any of them is the first."""
    inputs = mi_inputs(rows, 4, 6, dtype, seed=rows, density=0.5)
    assert_loss(inputs, pairing=pairing, combine=combine)


@pairing
@pytest.mark.parametrize("case", CASES)
def test_offsets_and_weights(pairing, case):
    inputs = CASES[case](mi_inputs(8, 3, 5, torch.float32, seed=2, density=0.6))
    assert_loss(inputs, pairing=pairing)


@pairing
@pytest.mark.parametrize("error", errors)
def test_approximate_instructions(monkeypatch, pairing, error):
    """As inexact as the PTX manual allows."""
    both = _one_group, _one_group_backward
    approximate(monkeypatch, errors[error](np.random.default_rng(0)), inverse=both)
    for case in CASES.values():
        assert_loss(case(mi_inputs(8, 2, 5, torch.float32, seed=3)), pairing=pairing)


def launches(pairing, rows, features=5, own=True, wanted=(True,) * 4, same_mask=True):
    """Of the loss and of its gradients, which are not executed; inputs and gradients."""
    mu, stds, mask, x, y = mi_inputs(rows, 3, features, torch.float32, seed=1)
    mask[1], mask[:, 2] = False, False
    scoring = scoring_of(mask, pairing, same_mask, own)
    inputs = y, x, mu, stds
    with recorded() as forward:
        total, terms, state = jensen(inputs, scoring)
    with recorded() as backward:
        found = jensen_backward((total, terms), inputs, scoring, state, wanted)
    return forward, backward, inputs, found


@pairing
@pytest.mark.parametrize("same_mask", [True, False])
@pytest.mark.parametrize("features", [5, 130])
def test_what_it_moves(pairing, same_mask, features):
    """Every element that contributes is read once in each pass, no shift again; nothing is kept of
    a column but a byte; and gradients are written once."""
    forward, backward, inputs, found = launches(pairing, 8, features, same_mask=same_mask)
    names = [this.kernel.__name__ for this in (*forward, *backward)]
    expected = [
        *("prepare_kernel", "settle_kernel", "one_group_kernel", "sums_of_pairs_kernel"),
        *("reduce_kernel", "one_group_gradient_kernel", "gradient_of_pairs_kernel"),
    ]
    assert names == expected
    if same_mask:  # of an expanded one the counter sees each access in every row
        assert_modelled(forward)
        assert_modelled(backward)
    else:
        run(forward)
    of_kernels = [run([this]) for this in (*forward, *backward) if this.kernel.__name__ in KERNELS]
    for counts in of_kernels:
        ((this, _),) = counts
        a = this.named()
        masks = a["sample_mask"], a["component_mask"]
        samples, components = torch.zeros(2, 8, 3, dtype=torch.bool)
        halves = slice(0, 4), slice(4, 8)
        for i, m in (halves, halves[::-1])[: a["MIXTURES"]]:
            samples[i] |= masks[0][i] & masks[1][m].any(0)
            components[m] |= masks[1][m] & masks[0][i].any(0)
        contributing = samples, components, components, samples | components
        for name, tensor, here in zip(NAMES, inputs, contributing, strict=True):
            loads = accesses(counts, tensor, "loads")
            assert torch.equal(loads, here[..., None].expand_as(tensor).long()), name
    for name, gradient in zip(NAMES, found, strict=True):
        assert (accesses(of_kernels[1], gradient, "stores") == 1).all(), name


@pairing
@pytest.mark.parametrize("only", range(4), ids=NAMES)
def test_one_gradient(pairing, only):
    """It has the bits of all four, and its traffic is modelled."""
    forward, backward, *_ = launches(pairing, 8, wanted=[i == only for i in range(4)])
    run(forward)
    assert_modelled(backward)
    argument = (4, 3, 0, 1)[only]
    inputs = mi_inputs(8, 3, 5, torch.float32, seed=4)
    everything = leaves(inputs)
    expected = gradients(mi(everything, pairing=pairing), everything)
    inputs[argument].requires_grad_()
    (found,) = torch.autograd.grad(mi(inputs, pairing=pairing), inputs[argument])
    assert torch.equal(found, expected[(0, 1, None, 2, 3)[argument]])


def test_samples_without_variances_against_other_rows():
    """Three samples against four components: of the entropy."""
    generator = torch.Generator().manual_seed(5)
    y, x, mu, stds = (torch.randn(n, 3, 5, generator=generator) for n in (3, 4, 4, 4))
    mask, other = torch.rand(3, 3, generator=generator) < 0.7, torch.rand(4, 3) < 0.7
    found = {}
    for backend in ("triton", "reference"):
        tensors = [t.clone().requires_grad_() for t in (x, y, mu, stds.abs() + 0.3)]
        with use_backend(backend):
            value = fused_mi.gaussian_mixture_entropy(*tensors, mask, component_mask=other)
            found[backend] = value.detach(), *torch.autograd.grad(value, tensors)
    for ours, plain in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-6, atol=1e-6)
    with recorded() as found_launches:
        fused_mi.gaussian_mixture_entropy(*tensors, mask, component_mask=other)
    assert "one_group_kernel" in [this.kernel.__name__ for this in found_launches]


@pairing
def test_memory_is_written_before_it_is_read(pairing):
    inputs = mi_inputs(8, 3, 5, torch.float32, seed=6)
    inputs[2][:, 1] = False
    plain = evaluate(lambda t: mi(t, pairing=pairing), inputs)
    with fresh_memory_full_of_nan():
        again = evaluate(lambda t: mi(t, pairing=pairing), inputs)
    assert_same_bits(again, plain)


@pairing
@pytest.mark.parametrize("rows", [8, 10])
def test_a_column_of_another_scale_goes_by_pairs(pairing, rows):
    """With a state or without."""
    inputs = mi_inputs(rows, 2, 20, torch.float32, seed=7)
    for i in (0, 3, 4):
        inputs[i][1, 1, 3] *= 1e6
        inputs[i][-1, 1, 3] *= 1e6
    assert_loss(inputs, pairing=pairing)


@pairing
def test_larger_batches_have_a_state(pairing):
    for rows, few in ((8, True), (10, False)):
        forward, *_ = launches(pairing, rows)
        assert ("one_group_kernel" in [la.kernel.__name__ for la in forward]) == few
