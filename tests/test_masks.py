"""What a mask takes out has no influence, to the last bit, whatever value it hides."""

import functools

import fused_mi
import pytest
import torch
from cases import (
    DEVICE,
    FLOATING,
    MASK,
    MI_ARGUMENTS,
    mi,
    mi_inputs,
    same_bits,
    value_and_gradients,
)
from marks import dtypes, estimator, every_mode_and_mask
from oracle import mutual_information
from rules import assert_rule10

pytestmark = pytest.mark.every_backend

POISONS = [float("nan"), float("inf"), float("-inf")]


def used_positions(mask, pairing, combine):
    """(B, S) bool: positions with weight in some pair, as samples and as components."""
    b = len(mask)
    half = b // 2
    as_sample, as_component = torch.zeros_like(mask), torch.zeros_like(mask)
    for i in range(b):
        for j in range(b):
            paired = {
                "sub_batch": i < half <= j,
                "symmetric": (i < half) != (j < half),
                "leave_one_out": i != j,
            }[pairing]
            if paired:
                weight = mask[i] & mask[j] if combine else mask[i]
                as_sample[i] |= weight
                as_component[j] |= weight
    return as_sample, as_component


def used_by_argument(mask, pairing, combine):
    as_sample, as_component = used_positions(mask, pairing, combine)
    both = as_sample | as_component
    return {0: as_component, 1: both, 3: as_component, 4: as_sample}


def assert_inert(function, inputs, unused, poison):
    """Replacing the ``unused`` positions (index -> mask) changes no bit; gradients there are 0."""
    poisoned = [t.clone() for t in inputs]
    for index, where in unused.items():
        assert where.any(), f"argument {index}: nothing is hidden, the test would be empty"
        poisoned[index][where] = poison
    value, grads = value_and_gradients(function, inputs)
    poisoned_value, poisoned_grads = value_and_gradients(function, poisoned)
    assert torch.isfinite(value)
    assert same_bits(value, poisoned_value)
    floating = [i for i, t in enumerate(inputs) if t.is_floating_point() and t.dim() == 3]
    for index, a, b in zip(floating, grads, poisoned_grads, strict=True):
        assert torch.isfinite(a).all(), index
        assert same_bits(a, b), index
        if index in unused:
            assert (b[unused[index]] == 0).all()


@every_mode_and_mask
@pytest.mark.parametrize("poison", POISONS)
@dtypes(torch.float32, torch.float64)
def test_hidden_values_in_all_inputs(options, poison, dtype):
    inputs = mi_inputs(b=6, s=7, dtype=dtype, seed=1, density=0.3)
    inputs[MASK][:, 0] = True
    # position 1: active in one row of the first half only; 2: in one row of the second only;
    # 3: in several rows of the first half, none of the second; 4: nowhere
    inputs[MASK][:, 1:5] = False
    inputs[MASK][1, 1] = inputs[MASK][4, 2] = inputs[MASK][0, 3] = inputs[MASK][2, 3] = True
    used = used_by_argument(inputs[MASK], options["pairing"], options["combine"])
    unused = {i: ~u for i, u in used.items() if not u.all()}
    assert_inert(lambda t: mi(t, **options), inputs, unused, poison)


@every_mode_and_mask
@pytest.mark.parametrize("index", FLOATING, ids=lambda i: MI_ARGUMENTS[i])
def test_hidden_values_in_one_input(options, index):
    inputs = mi_inputs(b=6, s=5, dtype=torch.float32, seed=2, density=0.3)
    inputs[MASK][:, 1] = False
    inputs[MASK][3, 1] = True
    unused = ~used_by_argument(inputs[MASK], options["pairing"], options["combine"])[index]
    if unused.any():
        assert_inert(lambda t: mi(t, **options), inputs, {index: unused}, float("nan"))
    else:
        assert not options["combine"], "with combined masks something is always hidden here"


@estimator
@pytest.mark.parametrize("component_mask", [True, False])
@pytest.mark.parametrize("poison", POISONS)
def test_hidden_values_of_the_entropy(estimator, component_mask, poison):
    means, stds, mask, clean, noisy = mi_inputs(b=4, s=6, seed=3, dtype=torch.float32, density=0.5)
    other = mi_inputs(b=4, s=6, seed=4, density=0.5)[MASK]
    mask[:, 1:4], other[:, 1:4] = False, False
    mask[2, 1] = other[1, 2] = True
    other = other if component_mask else torch.ones_like(other)
    as_sample, as_component = mask & other.any(0), other & mask.any(0)

    def entropy(t):
        given = other if component_mask else None
        return fused_mi.gaussian_mixture_entropy(*t, component_mask=given, estimator=estimator)

    inputs = [clean, noisy, means, stds, mask]
    unused = {0: ~as_component, 1: ~as_sample, 2: ~as_component, 3: ~as_component}
    assert_inert(entropy, inputs, unused, poison)


@every_mode_and_mask
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_nothing_active_is_zero(options, reduction):
    for poison in (0.0, float("nan")):
        inputs = mi_inputs(dtype=torch.float32)
        inputs[MASK][:] = False
        for i in FLOATING:
            inputs[i] += poison
        losses = {}
        call = functools.partial(mi, losses=losses, reduction=reduction, **options)
        value, grads = value_and_gradients(call, inputs)
        assert value.item() == 0.0
        assert all(abs(v.item()) < 1e-12 for v in losses.values())
        assert all((g == 0).all() for g in grads)


@every_mode_and_mask
@pytest.mark.parametrize("row", [0, 4])
def test_one_active_row(options, row):
    """With combined masks no pair shares a position: exactly 0, whatever the values."""
    inputs = mi_inputs(dtype=torch.float32, seed=5)
    inputs[MASK][:] = False
    inputs[MASK][row] = True
    if not options["combine"]:
        if row == 4 and options["pairing"] == "sub_batch":
            assert mi(inputs, **options).item() == 0.0
        else:
            assert_rule10(lambda t: mi(t, **options), inputs, options)
        return
    assert mi(inputs, **options).item() == 0.0
    for i in FLOATING:
        inputs[i].fill_(float("nan"))
    value, grads = value_and_gradients(lambda t: mi(t, **options), inputs)
    assert value.item() == 0.0
    assert all((g == 0).all() for g in grads)


@estimator
def test_leave_one_out_with_one_active_sample_and_free_components(estimator):
    """Not combined: the lonely row scores all other components, never its own."""
    options = {"estimator": estimator, "pairing": "leave_one_out", "combine": False}
    inputs = mi_inputs(b=5, s=3, dtype=torch.float32, seed=6)
    inputs[MASK][:] = True
    inputs[MASK][:, 1] = False
    inputs[MASK][2, 1] = True
    own = torch.zeros_like(inputs[MASK])
    own[2, 1] = True
    assert_inert(lambda t: mi(t, **options), inputs, {0: own, 3: own}, float("nan"))


@estimator
def test_disjoint_pairs(estimator):
    """Each sample shares positions with some components only; the other pairs have no energy."""
    inputs = mi_inputs(b=6, s=4, seed=7)
    inputs[MASK] = torch.tensor(
        [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]],
        device=DEVICE,
    )
    options = {"estimator": estimator}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@estimator
def test_one_true_in_a_half(estimator):
    inputs = mi_inputs(b=6, s=4, seed=8, dtype=torch.float32)
    inputs[MASK][:3] = False
    inputs[MASK][1, 0] = True
    options = {"estimator": estimator}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@estimator
def test_the_minimum_runs_over_each_role_s_own_active_stds(estimator):
    """Hidden stds, tiny, zero or inf, leave the stabiliser alone; a tiny active one moves it."""
    options = {"estimator": estimator, "safety_factor": 1e5}
    for row in (0, 5):
        inputs = mi_inputs(b=6, s=4, dtype=torch.float32, seed=9)
        inputs[MASK][row, 2] = False
        before = mi(inputs, **options)
        for hidden in (1e-4, 0.0, float("inf"), 1e-30):
            inputs[1][row, 2] = hidden
            assert torch.equal(mi(inputs, **options), before)
        inputs[MASK][:, 2] = True
        inputs[1][row, 2] = 1e-4
        want = mutual_information(
            [t.double() if t.dim() == 3 else t for t in inputs], eps_dtype=torch.float32, **options
        )["mutual_information_loss"]
        assert mi(inputs, **options).item() == pytest.approx(want.item(), rel=1e-4)
