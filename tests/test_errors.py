"""Bad tensors: the right exception, and what was expected and given in its message."""

import fused_mi
import pytest
import torch
from arguments import FUNCTIONS, entropy_arguments, mi_arguments
from cases import FLOATING, MI_ARGUMENTS, mi, mi_inputs
from marks import estimator, pairing
from torch._subclasses import FakeTensorMode

MI = list(enumerate(MI_ARGUMENTS))


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


def test_an_empty_mixture_and_no_samples():
    given = entropy_arguments()
    empty = {n: given[n][:0] for n in ("clean_embeddings", "means", "stds", "component_mask")}
    with pytest.raises(ValueError, match="clean_embeddings"):
        fused_mi.gaussian_mixture_entropy(**{**given, **empty})
    empty = {n: given[n][:0] for n in ("transformed_embeddings", "mask")}
    with pytest.raises(ValueError, match="transformed_embeddings"):
        fused_mi.gaussian_mixture_entropy(**{**given, **empty})


@estimator
def test_nan_in_an_active_position_is_not_hidden(estimator):
    for index in FLOATING:
        inputs = mi_inputs()
        inputs[index][:, 0, 0] = torch.nan
        assert torch.isnan(mi(inputs, estimator=estimator))
