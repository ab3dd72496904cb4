"""Values, gradients and entries of the mutual information against the loop over pairs."""

import pytest
import torch
from cases import (
    ALL_CASES,
    DEVICE,
    MASK,
    gradients,
    interpreted,
    leaves,
    mi,
    mi_inputs,
)
from marks import combine, dtypes, estimator, every_mode, every_option
from oracle import (
    ASSIGNMENT,
    ENTROPY,
    LOG_DETERMINANT,
    MAHALANOBIS,
    STD_LOG,
    TOTAL,
    broadcast_energies,
    loop_energies,
    mutual_information,
)
from rules import assert_rule10

pytestmark = pytest.mark.every_backend


def calling(options):
    return lambda inputs: mi(inputs, **options)


@every_option
def test_the_two_oracles_agree(options):
    inputs = mi_inputs(seed=3)
    a = mutual_information(inputs, energies=loop_energies, **options)
    b = mutual_information(inputs, energies=broadcast_energies, **options)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-12)


@every_option
@dtypes(torch.float64, torch.float32)
def test_value_and_gradients(options, dtype):
    assert_rule10(calling(options), mi_inputs(dtype=dtype, seed=1), options)


@every_option
def test_every_entry_on_its_own(options):
    inputs = mi_inputs(seed=2)
    ours_in, true_in = leaves(inputs), leaves(inputs)
    losses = {}
    result = mi(ours_in, losses=losses, **options)
    true = mutual_information(true_in, **options)
    expected = {MAHALANOBIS, LOG_DETERMINANT, ENTROPY, STD_LOG, TOTAL}
    expected |= {ASSIGNMENT} if options["estimator"] == "logsumexp" else set()
    assert set(losses) == expected
    assert losses[TOTAL].item() == pytest.approx(result.item(), rel=1e-12, abs=1e-12)
    scale = max(abs(v.item()) for v in true.values())
    for name, entry in losses.items():
        assert entry.shape == ()
        assert entry.dtype == torch.float64
        assert abs(entry.item() - true[name].item()) <= 1e-11 * scale, name
        ours_grads = gradients(entry, ours_in, retain_graph=True)
        true_grads = gradients(true[name], true_in, retain_graph=True)
        largest = max(g.abs().max().item() for g in true_grads if g is not None)
        for ours, want in zip(ours_grads, true_grads, strict=True):
            ours = torch.zeros((), device=DEVICE) if ours is None else ours
            want = torch.zeros_like(ours) if want is None else want
            assert (ours - want).abs().max().item() <= 1e-11 * largest, name


@every_option
def test_entries_add_up(options):
    losses = {}
    result = mi(mi_inputs(seed=4, dtype=torch.float32), losses=losses, **options)
    parts = losses[MAHALANOBIS] + losses[LOG_DETERMINANT] + losses.get(ASSIGNMENT, 0.0)
    scale = sum(abs(v.item()) for v in losses.values())
    assert abs((parts - losses[ENTROPY]).item()) <= 4e-7 * scale
    assert abs((losses[ENTROPY] + losses[STD_LOG] - losses[TOTAL]).item()) <= 4e-7 * scale
    assert abs((losses[TOTAL] - result).item()) <= 4e-7 * scale


def test_weighted_entries_backpropagate_together():
    inputs = mi_inputs(seed=5)
    ours_in, true_in = leaves(inputs), leaves(inputs)
    losses = {}
    mi(ours_in, losses=losses)
    true = mutual_information(true_in)
    weights = {MAHALANOBIS: 0.5, LOG_DETERMINANT: 0.0, STD_LOG: -2.0}
    ours = gradients(sum(w * losses[name] for name, w in weights.items()), ours_in)
    want = gradients(sum(w * true[name] for name, w in weights.items()), true_in)
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@every_mode
@dtypes(torch.float16, torch.bfloat16)
def test_half_types(options, dtype):
    assert_rule10(calling(options), mi_inputs(dtype=dtype, seed=6), options)


@every_mode
@pytest.mark.parametrize("position", [0, 1, 3, 4])
@pytest.mark.parametrize("odd_one", [torch.float64, torch.bfloat16], ids=["f64", "bf16"])
def test_mixed_dtypes(options, position, odd_one):
    inputs = mi_inputs(dtype=torch.float32, seed=7)
    inputs[position] = inputs[position].to(odd_one)
    assert_rule10(calling(options), inputs, options)


@dtypes(torch.float64, torch.float32)
@pytest.mark.parametrize("offset", [1e3, 5e5])
@combine
@every_mode
def test_offsets(options, combine, offset, dtype):
    inputs = mi_inputs(b=8, e=5, dtype=dtype, offset=offset, seed=8)
    assert_rule10(calling({**options, "combine": combine}), inputs, {**options, "combine": combine})


@estimator
def test_a_spread_that_differs_by_position_with_offsets_of_both_signs(estimator):
    inputs = mi_inputs(b=8, s=6, e=8, dtype=torch.float32, seed=9)
    outliers = torch.tensor([0.0, 5e5, -5e5, 1e3, -1e3, 3e4, 0.0, 7.0], device=DEVICE)
    inputs[3] += outliers
    inputs[4] += outliers
    assert_rule10(calling({"estimator": estimator}), inputs, {"estimator": estimator})


@pytest.mark.parametrize("shape", [(2, 4, 3), (4, 1, 1), (4, 3, 1), (6, 1, 127), (4, 2, 129)])
@every_mode
def test_shapes(options, shape):
    inputs = mi_inputs(*shape, dtype=torch.float32, seed=10)
    assert_rule10(calling(options), inputs, options)


@pytest.mark.parametrize("b", [3, 5])
@estimator
def test_odd_batches_leave_one_out(estimator, b):
    options = {"estimator": estimator, "pairing": "leave_one_out"}
    assert_rule10(calling(options), mi_inputs(b=b, dtype=torch.float32, seed=11), options)


@every_mode
def test_a_large_batch_of_single_tokens(options):
    b = 1024 if ALL_CASES else 512
    b = 4096 if options == {"estimator": "jensen", "pairing": "sub_batch"} else b
    if options["estimator"] == "logsumexp" and interpreted():
        b = 128  # the interpreter takes minutes for more pairs
    inputs = mi_inputs(b=b, s=1, e=2, dtype=torch.float32, seed=12)
    assert_rule10(calling(options), inputs, options)


@pytest.mark.parametrize(
    "kind", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16]
)
@estimator
def test_any_mask_dtype_and_any_non_zero_value_is_active(estimator, kind):
    inputs = mi_inputs(seed=13)
    plain = mi(inputs, estimator=estimator)
    for value in (1,) if kind == torch.bool else (1, 3):
        cast = list(inputs)
        cast[MASK] = (inputs[MASK].to(torch.float32) * value).to(kind)
        assert torch.equal(mi(cast, estimator=estimator), plain)
    if kind.is_floating_point:
        cast[MASK] = inputs[MASK].to(kind) * -0.5
        assert torch.equal(mi(cast, estimator=estimator), plain)


@pytest.mark.parametrize("safety_factor", [0.0, 10.0, 1e5])
@every_mode
def test_safety_factor(options, safety_factor):
    options = {**options, "safety_factor": safety_factor}
    assert_rule10(calling(options), mi_inputs(dtype=torch.float32, seed=14), options)


def test_the_safety_factor_defaults_to_100():
    inputs = mi_inputs(seed=15, dtype=torch.float32)
    inputs[1][0, 0, 0] = 1e-3
    default = mi(inputs)
    assert torch.equal(default, mi(inputs, safety_factor=100.0))
    assert not torch.equal(default, mi(inputs, safety_factor=1e6))
