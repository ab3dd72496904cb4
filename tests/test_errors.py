"""Bad arguments: the right exception, and what was expected and given in its message."""

import fused_mi
import pytest
import torch
from cases import ESTIMATORS, FLOATING, MASK, MI_ARGUMENTS, mi, mi_inputs
from test_entropy import entropy_inputs

MI = list(enumerate(MI_ARGUMENTS))
ENTROPY_ARGUMENTS = ["clean_embeddings", "transformed_embeddings", "means", "stds", "mask"]


def entropy_arguments():
    inputs, component_mask = entropy_inputs(dtype=torch.float32)
    return dict(zip(ENTROPY_ARGUMENTS, inputs, strict=True), component_mask=component_mask)


def distance_arguments():
    inputs = mi_inputs(dtype=torch.float32)
    return {"x": inputs[3], "y": inputs[4], "stds": inputs[1], "mask": inputs[MASK]}


def pairwise_arguments():
    arguments = entropy_arguments()
    return {
        "y": arguments["transformed_embeddings"],
        "centers": arguments["clean_embeddings"],
        "stds": arguments["stds"],
        "mask": arguments["mask"],
        "component_mask": arguments["component_mask"],
    }


def mi_arguments():
    return dict(zip(MI_ARGUMENTS, mi_inputs(dtype=torch.float32), strict=True))


FUNCTIONS = [
    (fused_mi.mutual_information_sub_batch, mi_arguments),
    (fused_mi.gaussian_mixture_entropy, entropy_arguments),
    (fused_mi.square_mahalanobis_distance, distance_arguments),
    (fused_mi.pairwise_square_mahalanobis_distance, pairwise_arguments),
]
each_argument = pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        pytest.param(function, make, name, id=f"{function.__name__}-{name}")
        for function, make in FUNCTIONS
        for name in make()
    ],
)


def is_mask(name):
    return "mask" in name


@each_argument
def test_the_arguments_as_such_are_fine(function, arguments, name):
    assert torch.isfinite(function(**arguments())).all()


@each_argument
@pytest.mark.parametrize("value", [[[1.0]], 3.0, "text"], ids=["list", "number", "text"])
def test_not_a_tensor(function, arguments, name, value):
    with pytest.raises(TypeError, match=rf"\b{name}\b.*{type(value).__name__}"):
        function(**{**arguments(), name: value})


@each_argument
def test_wrong_dtype(function, arguments, name):
    given = arguments()
    for dtype in (
        (torch.complex64,) if is_mask(name) else (torch.int64, torch.bool, torch.complex64)
    ):
        with pytest.raises(TypeError, match=rf"\b{name}\b.*{dtype}"):
            function(**{**given, name: given[name].to(dtype)})


@each_argument
def test_wrong_sizes(function, arguments, name):
    given = arguments()
    tensor = given[name]
    wrong = [tensor[:, :-1], tensor[:, 1:], torch.cat((tensor, tensor), 1)]
    if not is_mask(name):
        wrong += [tensor[..., :-1], torch.cat((tensor, tensor), -1)]
    for bad in wrong:
        with pytest.raises(ValueError, match=r"expected.*got") as error:
            function(**{**given, name: bad})
        assert any(argument in str(error.value) for argument in given)


@pytest.mark.parametrize("index", range(5), ids=lambda i: MI_ARGUMENTS[i])
def test_wrong_shapes_name_the_argument_and_both_shapes(index):
    """The first sets the norm; of the others, the odd one out is the one to name."""
    for change in (lambda t: t[:4], lambda t: t[:, :2], lambda t: t[0], lambda t: t[None]):
        inputs = mi_inputs(dtype=torch.float32)
        inputs[index] = change(inputs[index])
        with pytest.raises(ValueError, match=r"expected.*got") as error:
            mi(inputs)
        if index:
            assert MI_ARGUMENTS[index] in str(error.value)
            assert str(tuple(inputs[index].shape)) in str(error.value)
            assert "(6, 4" in str(error.value)


@pytest.mark.parametrize(
    "name", ["transformed_embeddings", "means", "stds", "mask", "component_mask"]
)
def test_wrong_shapes_of_the_entropy(name):
    for change in (lambda t: t[:1], lambda t: t[:, :2], lambda t: t[0]):
        given = entropy_arguments()
        if (
            name == "transformed_embeddings"
            and change(given[name]).shape[1:] == given[name].shape[1:]
        ):
            continue  # another number of samples: then the mask is the one that does not fit
        given[name] = change(given[name])
        with pytest.raises(ValueError, match=rf"\b{name}\b.*expected.*got"):
            fused_mi.gaussian_mixture_entropy(**given)


@each_argument
def test_another_device(function, arguments, name):
    given = arguments()
    with pytest.raises(ValueError, match=r"(?=.*meta)(?=.*cpu)") as error:
        function(**{**given, name: given[name].to("meta")})
    assert any(argument in str(error.value) for argument in given)


@pytest.mark.parametrize("b", [0, 1])
@pytest.mark.parametrize("pairing", ["sub_batch", "symmetric", "leave_one_out"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_batch_of_less_than_two(b, pairing, estimator):
    with pytest.raises(ValueError, match=rf"(?=.*2)(?=.*{b})"):
        mi([t[:b] for t in mi_inputs()], pairing=pairing, estimator=estimator)


@pytest.mark.parametrize("pairing", ["sub_batch", "symmetric"])
def test_an_odd_batch(pairing):
    with pytest.raises(ValueError, match=r"(?=.*even)(?=.*5)"):
        mi(mi_inputs(b=5), pairing=pairing)
    assert torch.isfinite(mi(mi_inputs(b=5), pairing="leave_one_out"))


@pytest.mark.parametrize("name", ["estimator", "reduction", "pairing"])
@pytest.mark.parametrize("value", ["none", "", None, 3, "JENSEN", ["sum"]], ids=str)
def test_unknown_options(name, value):
    calls = [
        lambda: mi(mi_inputs(), **{name: value}),
        lambda: fused_mi.MutualInformationLoss(**{name: value}),
    ]
    if name != "pairing":
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


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_safety_factor_values(value):
    for function, make in FUNCTIONS:
        with pytest.raises(ValueError, match="safety_factor"):
            function(**make(), safety_factor=value)


def test_safety_factor_types():
    for value in ("100", None, [1.0]):
        with pytest.raises(TypeError, match="safety_factor"):
            mi(mi_inputs(), safety_factor=value)


def test_an_empty_mixture_and_no_samples():
    given = entropy_arguments()
    empty = {n: given[n][:0] for n in ("clean_embeddings", "means", "stds", "component_mask")}
    with pytest.raises(ValueError, match="clean_embeddings"):
        fused_mi.gaussian_mixture_entropy(**{**given, **empty})
    empty = {n: given[n][:0] for n in ("transformed_embeddings", "mask")}
    with pytest.raises(ValueError, match="transformed_embeddings"):
        fused_mi.gaussian_mixture_entropy(**{**given, **empty})


def test_errors_come_before_losses_is_touched():
    losses = {}
    inputs = mi_inputs()
    inputs[1] = inputs[1][:, :1]
    with pytest.raises(ValueError, match="stds_tensor"):
        mi(inputs, losses=losses)
    assert losses == {}


def test_nan_in_an_active_position_is_not_hidden():
    for index in FLOATING:
        inputs = mi_inputs()
        inputs[index][:, 0, 0] = torch.nan
        for estimator in ESTIMATORS:
            assert torch.isnan(mi(inputs, estimator=estimator))
