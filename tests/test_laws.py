"""Laws that hold for every input: each of them states what must not change, or by how much."""

import math

import pytest
import torch
from cases import FLOATING, MASK, assert_same_bits, evaluate, mi, value_and_gradients
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import TOTAL, accumulation_dtype
from rules import assert_rule10, scales, underflows
from strategies import mi_batches, options

pytestmark = pytest.mark.every_device


def scale_of(inputs, chosen):
    """sum |terms| of the value, the natural unit of its rounding error."""
    acc = accumulation_dtype(*[inputs[i] for i in FLOATING])
    value, _ = scales(inputs, safety_factor=100.0, eps_dtype=acc, **chosen)
    return float(value)


def assert_close(a, b, scale, relative=1e-12):
    assert abs(float(a) - float(b)) <= relative * scale, (float(a), float(b), scale)


@given(mi_batches(), options())
def test_the_documented_formula(inputs, chosen):
    assume(not underflows(inputs, **chosen))
    assert_rule10(lambda t: mi(t, **chosen), inputs, chosen)


@given(mi_batches(dtype=torch.float32, even=False), options(pairings=("leave_one_out",)))
def test_the_documented_formula_leave_one_out_in_float32(inputs, chosen):
    assume(not underflows(inputs, **chosen))
    assert_rule10(lambda t: mi(t, **chosen), inputs, chosen)


@given(mi_batches(), options(estimators=("logsumexp",)))
def test_responsibilities_that_underflow_may_count_as_0(inputs, chosen):
    """Nothing else may: not the value, and no gradient far above the least normal number."""
    assume(underflows(inputs, **chosen))
    info = torch.finfo(torch.float64)
    size = max(float((inputs[i].abs().max() + 1) / inputs[1].min() ** 2) for i in (0, 3, 4))
    denormal = inputs[0].numel() * size * info.tiny / info.eps
    assert_rule10(lambda t: mi(t, **chosen), inputs, chosen, denormal=denormal)


@given(mi_batches(), options(), st.randoms(use_true_random=False))
def test_rows_of_a_half_may_be_permuted(inputs, chosen, random):
    b = len(inputs[0])
    first, second = list(range(b // 2)), list(range(b // 2, b))
    random.shuffle(first)
    random.shuffle(second)
    order = torch.tensor(first + second)
    value, grads = value_and_gradients(lambda t: mi(t, **chosen), inputs)
    moved, moved_grads = value_and_gradients(
        lambda t: mi(t, **chosen), [t[order].contiguous() for t in inputs]
    )
    assert_close(value, moved, scale_of(inputs, chosen))
    for a, b in zip(grads, moved_grads, strict=True):
        assert torch.allclose(a[order], b, rtol=1e-9, atol=1e-9 * (1 + a.abs().max().item()))


@given(mi_batches(), options(pairings=("leave_one_out",)), st.randoms(use_true_random=False))
def test_leave_one_out_has_no_halves(inputs, chosen, random):
    order = list(range(len(inputs[0])))
    random.shuffle(order)
    assert_close(
        mi(inputs, **chosen), mi([t[order] for t in inputs], **chosen), scale_of(inputs, chosen)
    )


@given(mi_batches(), options(pairings=("symmetric",)))
def test_symmetric_does_not_know_which_half_is_first(inputs, chosen):
    half = len(inputs[0]) // 2
    swapped = [torch.cat((t[half:], t[:half])) for t in inputs]
    assert_close(mi(inputs, **chosen), mi(swapped, **chosen), scale_of(inputs, chosen))


@given(mi_batches(), options(estimators=("jensen", "logsumexp")))
def test_symmetric_is_the_mean_of_both_directions(inputs, chosen):
    half = len(inputs[0]) // 2
    swapped = [torch.cat((t[half:], t[:half])) for t in inputs]
    one_way = {**chosen, "pairing": "sub_batch"}
    mean = (mi(inputs, **one_way) + mi(swapped, **one_way)) / 2
    both = {**chosen, "pairing": "symmetric"}
    assert_close(mi(inputs, **both), mean, scale_of(inputs, both))


@given(mi_batches(offsets=(0.0,)), options(), st.sampled_from((1.0, -1024.0, 2.0**20)))
def test_joint_shift(inputs, chosen, shift):
    shifted = list(inputs)
    # Values on a grid of 2^-20 keep x, y and their differences exact under the shift.
    for i in (3, 4):
        inputs[i] = (inputs[i] * 2**20).round() / 2**20
        shifted[i] = inputs[i] + shift
        assert torch.equal(shifted[i] - shift, inputs[i])
    assert_close(mi(inputs, **chosen), mi(shifted, **chosen), scale_of(inputs, chosen))


@given(mi_batches(offsets=(0.0,)), options(), st.sampled_from((0.125, 3.0, 1e3)))
def test_joint_scale(inputs, chosen, factor):
    """Lengths cancel in q and, as both count the same positions of a pair, in g - k."""
    scaled = [t if i == MASK else t * factor for i, t in enumerate(inputs)]
    log_terms = abs(math.log(factor)) * inputs[0].numel()
    a, b = mi(inputs, **chosen), mi(scaled, **chosen)
    assert_close(a, b, scale_of(inputs, chosen) + scale_of(scaled, chosen) + log_terms)


@given(mi_batches(offsets=(0.0,)), options(), st.integers(1, 3), st.integers(0, 3))
def test_padding_positions_changes_nothing(inputs, chosen, count, place):
    def padded(t):
        at = min(place, t.shape[1])
        padding = torch.zeros_like(t[:, :1]).expand(-1, count, *t.shape[2:])
        if t.is_floating_point():
            padding = padding + torch.nan
        return torch.cat((t[:, :at], padding, t[:, at:]), 1)

    wide = [padded(t) for t in inputs]
    if not chosen["combine"]:  # then every stds of the components is in use by the stabiliser
        wide[1] = torch.where(torch.isnan(wide[1]), 5.0, wide[1])
    value, grads = value_and_gradients(lambda t: mi(t, **chosen), inputs)
    wide_value, wide_grads = value_and_gradients(lambda t: mi(t, **chosen), wide)
    assert_close(value, wide_value, scale_of(inputs, chosen))
    for a, b in zip(grads, wide_grads, strict=True):
        assert torch.allclose(padded(a).nan_to_num(nan=0.0), b, rtol=1e-10, atol=1e-10)


@given(mi_batches(), options())
def test_jensen_is_never_below_logsumexp(inputs, chosen):
    jensen = mi(inputs, **{**chosen, "estimator": "jensen"})
    logsumexp = mi(inputs, **{**chosen, "estimator": "logsumexp"})
    slack = 1e-12 * scale_of(inputs, {**chosen, "estimator": "jensen"})
    assert jensen.item() >= logsumexp.item() - slack


@given(mi_batches(), options(pairings=("sub_batch",)))
def test_equal_components_are_one(inputs, chosen):
    """With M equal components the estimators agree, and M does not matter."""
    half = len(inputs[0]) // 2
    assume(half > 1)
    same = [torch.cat((t[:half], t[half : half + 1].expand(half, *t.shape[1:]))) for t in inputs]
    values = [mi(same, **{**chosen, "estimator": e}) for e in ("jensen", "logsumexp")]
    scale = scale_of(same, {**chosen, "estimator": "jensen"})
    assert_close(values[0], values[1], scale)
    one_pair = [torch.stack((t[0], t[half])) for t in same]
    single = {**chosen, "reduction": "sum", "estimator": "jensen"}
    rows = []
    for i in range(half):
        alone = list(same)
        alone[MASK] = same[MASK].clone()
        alone[MASK][:half] = False
        alone[MASK][i] = same[MASK][i]
        rows.append(mi(alone, safety_factor=0.0, **single).item())
    total = mi(same, safety_factor=0.0, **single)
    assert_close(total, sum(rows), scale_of(same, single))
    first = mi(one_pair, safety_factor=0.0, **single)
    assert_close(first, rows[0], scale_of(same, single) * half)


@given(mi_batches(), options())
def test_sum_is_n_times_mean(inputs, chosen):
    n = len(inputs[0]) // (1 if chosen["pairing"] == "leave_one_out" else 2)
    total = mi(inputs, **{**chosen, "reduction": "sum"})
    mean = mi(inputs, **{**chosen, "reduction": "mean"})
    assert_close(total, n * mean, scale_of(inputs, {**chosen, "reduction": "sum"}))


@given(mi_batches(dtype=torch.float32), options())
def test_repeats_are_bit_equal(inputs, chosen):
    assert_same_bits(*(evaluate(lambda t: mi(t, **chosen), inputs) for _ in range(2)))


@given(mi_batches(dtype=torch.float32, even=False), st.booleans())
def test_leave_one_out_of_two_rows_is_symmetric_sub_batch_with_common_stabiliser(inputs, combine):
    two = [t[:2] for t in inputs]
    chosen = {"combine": combine, "safety_factor": 0.0, "reduction": "mean"}
    for estimator in ("jensen", "logsumexp"):
        a = mi(two, estimator=estimator, pairing="leave_one_out", **chosen)
        b = mi(two, estimator=estimator, pairing="symmetric", **chosen)
        magnitude = {"estimator": "jensen", "reduction": "mean", "pairing": "symmetric"}
        scale = scale_of(two, {**magnitude, "combine": combine})
        assert_close(a, b, scale, relative=1e-6)


@given(mi_batches(), options())
def test_the_reported_total_is_the_result(inputs, chosen):
    losses = {}
    result = mi(inputs, losses=losses, **chosen)
    assert torch.equal(losses[TOTAL], result)
