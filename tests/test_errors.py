"""Bad arguments: the right exception, and what was expected and given in its message."""

import fractions
import types

import fused_mi
import numpy as np
import pytest
import torch
from cases import FLOATING, MASK, MI_ARGUMENTS, mi, mi_inputs
from marks import estimator, pairing
from test_entropy import entropy_inputs
from torch._subclasses import FakeTensorMode

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


NOT_DENSE = {
    "coo": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr(),
    "csc": lambda t: t.to_sparse_csc(),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
}
not_dense = pytest.mark.parametrize("kind", NOT_DENSE.values(), ids=NOT_DENSE)
# Those that PyTorch marks as prototypes warn when they are made.
prototypes = pytest.mark.filterwarnings("ignore")


@each_argument
@not_dense
@prototypes
def test_not_dense(function, arguments, name, kind):
    given = arguments()
    with pytest.raises(TypeError, match=rf"^{name}: expected a dense .*, got "):
        function(**{**given, name: kind(given[name])})


@not_dense
@prototypes
def test_not_dense_in_the_losses_of_the_stds_and_in_modules(kind):
    given = mi_arguments()
    stds, mask = given["stds_tensor"], given["noise_mask"]
    for function in (fused_mi.gaussian_entropy_log_loss, fused_mi.masked_negative_log_mean):
        with pytest.raises(TypeError, match=r"^stds: expected a dense .*, got "):
            function(kind(stds), mask)
        with pytest.raises(TypeError, match=r"^noise_mask: expected a dense .*, got "):
            function(stds, kind(mask))
    with pytest.raises(TypeError, match=r"^stds_tensor: expected a dense .*, got "):
        fused_mi.MutualInformationLoss()(**{**given, "stds_tensor": kind(stds)})
    with pytest.raises(TypeError, match=r"^mask: expected a dense .*, got "):
        fused_mi.GaussianMixtureEntropy()(
            **{**entropy_arguments(), "mask": kind(entropy_arguments()["mask"])}
        )


FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu)


@each_argument
@pytest.mark.parametrize("dtype", [*FLOAT8, torch.float4_e2m1fn_x2, torch.bits8], ids=str)
def test_dtypes_without_arithmetic(function, arguments, name, dtype):
    """Masks are only compared with 0, which float8 can."""
    given = arguments()
    if is_mask(name) and dtype in FLOAT8[:2]:
        result = function(**{**given, name: given[name].to(dtype)})
        assert torch.equal(result, function(**given))
    elif dtype not in FLOAT8 or not is_mask(name):
        with pytest.raises(TypeError, match=rf"^{name}: expected a dense .*, got {dtype}"):
            function(**{**given, name: torch.empty(given[name].shape, dtype=dtype)})


def test_other_dense_tensors_are_fine():
    class Subclass(torch.Tensor):
        pass

    plain = mi_arguments()
    value = fused_mi.mutual_information_sub_batch(**plain)
    for kind in (
        lambda t: torch.nn.Parameter(t, requires_grad=t.is_floating_point()),
        lambda t: t.as_subclass(Subclass),
        lambda t: t.mT.contiguous().mT,
    ):
        given = {name: kind(tensor) for name, tensor in plain.items()}
        assert torch.equal(fused_mi.mutual_information_sub_batch(**given).detach(), value)
    expanded = {**plain, "stds_tensor": torch.ones(()).expand(plain["stds_tensor"].shape)}
    assert torch.isfinite(fused_mi.mutual_information_sub_batch(**expanded))
    meta = {name: tensor.to("meta") for name, tensor in plain.items()}
    assert fused_mi.mutual_information_sub_batch(**meta).is_meta
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in plain.items()}
        assert fused_mi.mutual_information_sub_batch(**fake).shape == ()

    def of_stds(stds):
        return fused_mi.mutual_information_sub_batch(**{**plain, "stds_tensor": stds})

    assert torch.func.grad(of_stds)(plain["stds_tensor"]).isfinite().all()


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
@pairing
@estimator
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


NOT_A_FLAG = pytest.mark.parametrize("value", ["no", "", None, 0, 1.0, [], np.int64(1)], ids=repr)


@NOT_A_FLAG
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


@estimator
def test_nan_in_an_active_position_is_not_hidden(estimator):
    for index in FLOATING:
        inputs = mi_inputs()
        inputs[index][:, 0, 0] = torch.nan
        assert torch.isnan(mi(inputs, estimator=estimator))
