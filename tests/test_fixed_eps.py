"""`eps`: a stabiliser that does not come from the batch."""

import fused_mi
import pytest
import torch
from arguments import entropy_inputs
from cases import FLOATING, MASK, assert_same_bits, gradients, leaves, mi, mi_inputs
from marks import dtypes, estimator, every_mode

pytestmark = pytest.mark.every_backend


@every_mode
@dtypes(torch.float32, torch.float64)
def test_it_takes_the_place_of_that_of_the_batch(options, dtype):
    """Of stds whose least is 0.4 in both roles."""
    inputs, eps = mi_inputs(dtype=dtype, seed=2), 0.3
    factor = eps / (torch.finfo(dtype).eps * 0.4**2)
    found, losses, of_batch = leaves(inputs), {}, leaves(inputs)
    ours = mi(found, losses=losses, eps=eps, safety_factor=7.0, **options)
    want = mi(of_batch, safety_factor=factor, **options)
    assert abs(ours.item() - mi(inputs, **options).item()) > 0.1
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(ours, want, **tolerance)
    torch.testing.assert_close(losses["mutual_information_loss"], want, **tolerance)
    for a, b in zip(gradients(ours, found), gradients(want, of_batch), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@dtypes(torch.float32, torch.float64, torch.bfloat16)
def test_components_do_not_depend_on_each_other(dtype):
    """The Jensen entropy of all is the mean of those of parts, one of which has the least std."""
    (clean, transformed, means, stds, mask), _ = entropy_inputs(5, 4, 2, 3, dtype)
    stds[0] = 0.2
    factor = 1 / torch.finfo(torch.promote_types(dtype, torch.float32)).eps

    def entropy(rows, **options):
        of_rows = clean[rows], transformed, means[rows], stds[rows], mask
        return fused_mi.gaussian_mixture_entropy(*of_rows, **options)

    for options, same in (({"eps": 0.01}, True), ({"safety_factor": factor}, False)):
        parts = (entropy(slice(0, 2), **options) + entropy(slice(2, 4), **options)) / 2
        equal = torch.allclose(parts, entropy(slice(0, 4), **options), rtol=1e-5)
        assert equal is same


@estimator
def test_stds_of_zero(estimator):
    inputs = mi_inputs(dtype=torch.float32)
    inputs[1].zero_()
    inputs = leaves(inputs)
    value = mi(inputs, estimator=estimator, eps=0.25)
    same = [t.detach() for t in inputs]
    same[1] = torch.full_like(inputs[1], 0.5)
    torch.testing.assert_close(value, mi(same, estimator=estimator, safety_factor=0.0))
    assert all(g.isfinite().all() for g in gradients(value, inputs))


@estimator
def test_nothing_is_added_for_0(estimator):
    inputs = mi_inputs()
    ours, want = (
        mi(inputs, estimator=estimator, **options)
        for options in ({"eps": 0}, {"safety_factor": 0.0})
    )
    assert_same_bits([ours], [want])


@pytest.mark.parametrize("large", [1e30, 1e38, 1e300])
def test_a_large_one(large):
    """In float32 no more than its largest number."""
    inputs = mi_inputs(dtype=torch.float32)
    value = mi(inputs, eps=large)
    assert value.isfinite()
    wide = [t.double() if i in FLOATING else t for i, t in enumerate(inputs)]
    most = min(large, torch.finfo(torch.float32).max)
    assert value.item() == pytest.approx(mi(wide, eps=most).item(), rel=1e-5, abs=1e-4)


def test_modules():
    inputs = mi_inputs(dtype=torch.float32)
    module = fused_mi.MutualInformationLoss(eps=0.1)
    assert_same_bits([module(*inputs)], [mi(inputs, eps=0.1)])
    arguments, _ = entropy_inputs()
    entropy = fused_mi.GaussianMixtureEntropy(eps=0.1)
    want = fused_mi.gaussian_mixture_entropy(*arguments, eps=0.1)
    assert_same_bits([entropy(*arguments)], [want])
    assert "eps=0.1" in repr(module) and "eps=0.1" in repr(entropy)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert_same_bits([compiled(*inputs)], [module(*inputs)])


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (-1, ValueError, r"^eps: expected a finite number >= 0, got -1.0$"),
        (float("nan"), ValueError, r"^eps: expected a finite number >= 0, got nan$"),
        ("1", TypeError, r"^eps: expected a number, got str$"),
        (True, TypeError, r"^eps: expected a number, got bool$"),
    ],
)
def test_errors(value, error, said):
    calls = (
        lambda: mi(mi_inputs(), eps=value),
        lambda: fused_mi.gaussian_mixture_entropy(*entropy_inputs()[0], eps=value),
        lambda: fused_mi.MutualInformationLoss(eps=value),
        lambda: fused_mi.GaussianMixtureEntropy(eps=value),
    )
    for call in calls:
        with pytest.raises(error, match=said):
            call()


def test_hidden_stds_play_no_part():
    inputs = mi_inputs(dtype=torch.float32)
    before = mi(inputs, eps=0.1)
    inputs[1][~inputs[MASK]] = float("nan")
    assert_same_bits([mi(inputs, eps=0.1)], [before])
