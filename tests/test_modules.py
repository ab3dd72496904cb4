"""The module forms: the same numbers, their options visible and copied along."""

import collections
import copy
import inspect
import pickle

import fused_mi
import pytest
import torch
from arguments import entropy_inputs
from cases import ESTIMATORS, MASK, mi, mi_inputs


def test_mutual_information_passes_every_option():
    inputs = mi_inputs(seed=1)
    inputs[1][0, 0, 0] = 1e-3
    options = {"estimator": "logsumexp", "reduction": "mean", "pairing": "symmetric"}
    losses, direct = {}, {}
    ours = fused_mi.MutualInformationLoss(False, 1e10, **options)(*inputs, losses)
    want = mi(inputs, combine=False, losses=direct, safety_factor=1e10, **options)
    assert torch.equal(ours, want)
    assert losses.keys() == direct.keys()
    assert all(torch.equal(losses[name], direct[name]) for name in losses)
    assert torch.equal(fused_mi.MutualInformationLoss()(*inputs), mi(inputs))
    assert not torch.equal(ours, mi(inputs))


def test_the_mask_option_has_the_name_of_the_function_and_a_short_one():
    name = "combine_noise_masks_for_mutual_information_sub_batches"
    inputs = mi_inputs(seed=1)
    for value in (True, False):
        want = mi(inputs, combine=value)
        for module in (
            fused_mi.MutualInformationLoss(value),
            fused_mi.MutualInformationLoss(**{name: value}),
            fused_mi.MutualInformationLoss(combine_noise_masks=value),
        ):
            assert module.combine_noise_masks is value
            assert torch.equal(module(*inputs), want)
    assert fused_mi.MutualInformationLoss().combine_noise_masks is True
    for both in (
        lambda: fused_mi.MutualInformationLoss(True, combine_noise_masks=True),
        lambda: fused_mi.MutualInformationLoss(**{name: True}, combine_noise_masks=False),
    ):
        with pytest.raises(TypeError, match=f"^combine_noise_masks: expected .*{name}.* got both"):
            both()


def test_the_options_of_modules_have_the_names_and_the_order_of_the_functions():
    for module, function in (
        (fused_mi.MutualInformationLoss, fused_mi.mutual_information_sub_batch),
        (fused_mi.GaussianMixtureEntropy, fused_mi.gaussian_mixture_entropy),
    ):
        options = list(inspect.signature(module).parameters)
        tensors = list(inspect.signature(module.forward).parameters)[1:]
        known = list(inspect.signature(function).parameters)
        if module is fused_mi.MutualInformationLoss:
            assert options.pop() == "combine_noise_masks"
        assert options == [name for name in known if name not in tensors]
        assert tensors == [name for name in known if name not in options]


def test_modules_pickled_under_the_short_name_still_work():
    module = fused_mi.MutualInformationLoss(False)
    assert vars(module)["combine_noise_masks"] is False
    assert not any("sub_batches" in name for name in vars(module))


def test_entropy_passes_every_option():
    inputs, component_mask = entropy_inputs()
    losses = {}
    options = {"estimator": "logsumexp", "reduction": "sum"}
    module = fused_mi.GaussianMixtureEntropy(1e10, **options)
    ours = module(*inputs, losses, component_mask=component_mask)
    want = fused_mi.gaussian_mixture_entropy(
        *inputs, None, 1e10, component_mask=component_mask, **options
    )
    assert torch.equal(ours, want)
    assert len(losses) == 3
    default = fused_mi.GaussianMixtureEntropy()(*inputs)
    assert torch.equal(default, fused_mi.gaussian_mixture_entropy(*inputs))
    assert not torch.equal(default, ours)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_compute_the_same(copied):
    module = fused_mi.MutualInformationLoss(
        False, 1e10, estimator="logsumexp", pairing="leave_one_out"
    )
    inputs = mi_inputs(seed=2)
    assert torch.equal(copied(module)(*inputs), module(*inputs))
    assert repr(copied(module)) == repr(module)


def test_extra_repr_names_the_options():
    text = repr(
        fused_mi.MutualInformationLoss(False, 7.0, estimator="logsumexp", pairing="symmetric")
    )
    assert text.startswith("MutualInformationLoss(")
    for part in ("combine_noise_masks=False", "safety_factor=7.0", "logsumexp", "sum", "symmetric"):
        assert part in text
    text = repr(fused_mi.GaussianMixtureEntropy(reduction="sum"))
    for part in ("safety_factor=100.0", "estimator=", "jensen", "reduction=", "sum"):
        assert part in text


def test_no_parameters_and_usable_in_a_sequential_state_dict():
    module = torch.nn.ModuleDict({"mi": fused_mi.MutualInformationLoss()})
    assert not list(module.parameters())
    assert not module.state_dict()


@pytest.mark.parametrize(
    "kind",
    [dict, collections.OrderedDict, collections.UserDict, collections.ChainMap],
)
def test_losses_accepts_any_mutable_mapping(kind):
    for estimator in ESTIMATORS:
        losses, plain = kind(), {}
        mi(mi_inputs(), losses=losses, estimator=estimator)
        mi(mi_inputs(), losses=plain, estimator=estimator)
        assert set(losses.keys()) == set(plain)
        assert all(torch.equal(losses[name], plain[name]) for name in plain)


def test_losses_keeps_foreign_entries_and_replaces_its_own():
    losses = {"task_loss": 3.0, "std_log_loss": None}
    mi(mi_inputs(), losses=losses)
    assert losses["task_loss"] == 3.0
    assert torch.is_tensor(losses["std_log_loss"])


def test_component_losses_dict_lists_every_entry():
    names = set(fused_mi.ComponentLossesDict.__annotations__)
    seen = {}
    mi(mi_inputs(), losses=seen, estimator="logsumexp")
    assert names == set(seen)
    assert fused_mi.ComponentLossesDict.__total__ is False


def test_the_signatures_existing_callers_rely_on():
    def names(function):
        return list(inspect.signature(function).parameters)

    assert names(fused_mi.square_mahalanobis_distance) == [
        "x",
        "y",
        "stds",
        "mask",
        "safety_factor",
    ]
    assert names(fused_mi.pairwise_square_mahalanobis_distance) == [
        *("y", "centers", "stds", "mask", "component_mask", "safety_factor")
    ]
    assert names(fused_mi.gaussian_mixture_entropy)[:7] == [
        *("clean_embeddings", "transformed_embeddings", "means", "stds", "mask", "losses"),
        "safety_factor",
    ]
    assert names(fused_mi.mutual_information_sub_batch)[:8] == [
        *("means_tensor", "stds_tensor", "noise_mask", "clean_input_embeddings"),
        "noisy_input_embeddings",
        "combine_noise_masks_for_mutual_information_sub_batches",
        *("losses", "safety_factor"),
    ]
    for function in (fused_mi.gaussian_entropy_log_loss, fused_mi.masked_negative_log_mean):
        assert names(function) == ["stds", "noise_mask"]
    parameters = inspect.signature(fused_mi.mutual_information_sub_batch).parameters
    defaults: dict[str, object] = {"estimator": "jensen", "reduction": "sum"}
    defaults |= {"pairing": "sub_batch", "constant": "keep", "eps": None}
    for name, default in defaults.items():
        assert parameters[name].default == default
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(fused_mi.gaussian_mixture_entropy).parameters
    assert parameters["reduction"].default == "mean"
    assert parameters["component_mask"].default is None


def test_the_value_needs_no_losses_argument_and_the_inputs_stay_untouched():
    inputs = mi_inputs(dtype=torch.float32)
    before = [t.clone() for t in inputs]
    mi(inputs, losses={}, estimator="logsumexp")
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert inputs[MASK].dtype == torch.bool
