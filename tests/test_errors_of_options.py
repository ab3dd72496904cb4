"""Bad options: the right exception, and what was expected and given in its message."""

import fractions
import types

import fused_mi
import numpy as np
import pytest
import torch
from arguments import FUNCTIONS, entropy_inputs
from cases import mi, mi_inputs
from marks import estimator


@pytest.mark.parametrize("name", ["estimator", "reduction", "pairing", "constant"])
@pytest.mark.parametrize("value", ["nothing", "", None, 3, "JENSEN", ["sum"]], ids=str)
def test_unknown_options(name, value):
    calls = [
        lambda: mi(mi_inputs(), **{name: value}),
        lambda: fused_mi.MutualInformationLoss(**{name: value}),
    ]
    if name in ("estimator", "reduction"):
        calls += [
            lambda: fused_mi.gaussian_mixture_entropy(*entropy_inputs()[0], **{name: value}),
            lambda: fused_mi.GaussianMixtureEntropy(**{name: value}),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"\b{name}\b.*expected.*got") as error:
            call()
        assert repr(value) in str(error.value)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"sub_batch.*symmetric.*leave_one_out.*'all'"):
        mi(mi_inputs(), pairing="all")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        *((-1.0, "-1.0"), (float("nan"), "nan"), (float("inf"), "inf"), (np.float32("nan"), "nan")),
        *((10**400, "inf"), (-(10**400), "-inf"), (10**5000, "inf"), (-1, "-1.0")),
        (fractions.Fraction(10**400), "inf"),
    ],
    ids=lambda value: str(value)[:8] if isinstance(value, (str, float)) else "huge",
)
def test_safety_factor_values(value, got):
    for function, make in FUNCTIONS:
        with pytest.raises(
            ValueError, match=f"^safety_factor: expected a finite number >= 0, got {got}$"
        ):
            function(**make(), safety_factor=value)


@pytest.mark.parametrize(
    "value", ["100", None, [1.0], True, np.bool_(True), 1j, np.complex64(1)], ids=str
)
def test_safety_factor_types(value):
    for function, make in FUNCTIONS:
        with pytest.raises(TypeError, match=r"^safety_factor: expected a number, got "):
            function(**make(), safety_factor=value)
    for module in (fused_mi.MutualInformationLoss, fused_mi.GaussianMixtureEntropy):
        with pytest.raises(TypeError, match=r"^safety_factor: expected a number, got "):
            module(safety_factor=value)


@pytest.mark.parametrize(
    "kind", [int, np.float16, np.float32, np.float64, np.int64, np.uint8, fractions.Fraction]
)
def test_any_real_number_is_a_safety_factor(kind):
    for function, make in FUNCTIONS:
        value = function(**make(), safety_factor=kind(3))
        assert torch.equal(value, function(**make(), safety_factor=3.0))
    for module in (fused_mi.MutualInformationLoss, fused_mi.GaussianMixtureEntropy):
        assert type(module(safety_factor=kind(3)).safety_factor) is float


@pytest.mark.parametrize("value", ["no", "", None, 0, 1.0, [], np.int64(1)], ids=repr)
def test_what_is_no_bool_is_no_flag(value):
    name = "combine_noise_masks_for_mutual_information_sub_batches"
    for call in (
        lambda: mi(mi_inputs(), value),
        lambda: fused_mi.MutualInformationLoss(value),
        lambda: fused_mi.MutualInformationLoss(**{name: value}),
    ):
        with pytest.raises(TypeError, match=rf"^{name}: expected True or False, got ") as error:
            call()
        assert str(error.value).endswith(repr(value))
    for call in (
        lambda: fused_mi.MutualInformationLoss(combine_noise_masks=value),
        lambda: fused_mi.warmup(2, 3, device="cpu", combine_noise_masks=value),
    ):
        with pytest.raises(TypeError, match=r"^combine_noise_masks: expected True or False, got "):
            call()


@pytest.mark.parametrize("value", [True, False])
def test_flags_of_numpy(value):
    assert torch.equal(mi(mi_inputs(), np.bool_(value)), mi(mi_inputs(), value))


@pytest.mark.parametrize(
    "losses", [[], (), "", 0, set(), types.MappingProxyType({}), torch.ones(1)], ids=repr
)
@estimator
def test_losses_that_cannot_be_written_to(losses, estimator):
    entropy = fused_mi.GaussianMixtureEntropy(estimator=estimator)
    for call in (
        lambda: mi(mi_inputs(), losses=losses, estimator=estimator),
        lambda: fused_mi.MutualInformationLoss(estimator=estimator)(*mi_inputs(), losses),
        lambda: entropy(*entropy_inputs()[0], losses),
    ):
        with pytest.raises(
            TypeError,
            match=f"^losses: expected a mutable mapping or None, got {type(losses).__name__}$",
        ):
            call()


def test_errors_come_before_losses_is_touched():
    losses = {}
    inputs = mi_inputs()
    inputs[1] = inputs[1][:, :1]
    with pytest.raises(ValueError, match="stds_tensor"):
        mi(inputs, losses=losses)
    assert losses == {}
