"""The Triton kernels of the pairs, in the interpreter: every tile, split and stride by itself."""

import math

import pytest
import torch
from cases import assert_same_bits, far_apart, fresh_memory_full_of_nan, mi, mi_inputs, same_bits
from fused_mi import use_backend
from fused_mi.reference import pairs as reference
from fused_mi.triton_kernels import _configs, _pairs_configs, _pairs_logs, pairs
from fused_mi.triton_kernels._launch import recorded
from marks import dtypes, pairing
from pair_rules import NAMES, pair_case, scales
from rules import FLOAT64_RELATIVE, assert_rule10
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# (N, M, S, E): less than a tile; several of samples, of components and of features.
SHAPES = [(1, 1, 1, 1), (5, 3, 2, 7), (3, 5, 1, 66), (66, 34, 2, 3), (9, 40, 1, 16)]
shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def evaluate(module, inputs, mixture, upstream):
    """Energies and gradients of a backend."""
    pull = module.pairs_backward(upstream, *inputs, None, [mixture], [True] * 4)
    return [module.pairs(*inputs, [mixture])[0], *pull]


def assert_close(inputs, mixture, upstream=None):
    """Energies and gradients as those of the plain implementation in float64; gives the former."""
    N, M = mixture.samples, mixture.components
    if upstream is None:
        upstream = torch.randn(1, 3, N, M, dtype=F64)
    ours, *of_ours = evaluate(pairs, inputs, mixture, upstream)
    wide = [None if t is None else t.double() for t in inputs]
    true, *of_true = evaluate(reference, wide, mixture, upstream)
    (scale,), *of_scale = scales(inputs, [mixture], upstream)
    exact = mixture.component_eps.dtype == F64
    relative = FLOAT64_RELATIVE if exact else 8 * torch.finfo(F32).eps
    assert ours.dtype == F64
    assert ((ours - true).abs() <= relative * scale).all()
    for name, tensor, a, b, size in zip(NAMES, inputs, of_ours, of_true, of_scale, strict=True):
        if tensor is None:
            assert a is None
            continue
        assert a.dtype == tensor.dtype
        rounding = 0 if a.dtype == F64 else torch.finfo(a.dtype).eps
        error, bound = (a.double() - b).abs(), relative * size + rounding * b.abs()
        assert (error <= bound).all(), f"{name}: {(error - bound).max()}"
    return ours, of_ours


class Called(TorchDispatchMode):
    """Names of torch's own operators."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names = {*getattr(self, "names", ()), function._schema.name}
        return function(*arguments, **(options or {}))


def test_no_matrix_product_of_a_library():
    """`torch.use_deterministic_algorithms` refuses those of cuBLAS without a setting."""
    inputs, mixture = pair_case((5, 3, 2, 7))
    with Called() as called, recorded():
        evaluate(pairs, inputs, mixture, torch.ones(1, 3, 5, 3, dtype=F64))
    assert any("empty" in name for name in called.names)
    assert not [name for name in called.names if "mm" in name or "matmul" in name]


@shape
@dtypes(F32, F64)
def test_energies_and_gradients_of_every_shape(shape, dtype):
    assert_close(*pair_case(shape, dtype))


@pytest.mark.parametrize(
    "dtypes", [(BF16,) * 4, (F16,) * 4, (F16, F32, BF16, F32), (F32, BF16, F64, F16)], ids=str
)
def test_dtypes(dtypes):
    assert_close(*pair_case((5, 3, 2, 18), dtypes))


@dtypes(F32, F64)
@pytest.mark.parametrize("programs", [1, 10**6], ids=["one split", "many"])
@pytest.mark.parametrize("e", [16, 41])
def test_chunks_and_splits(monkeypatch, e, programs, dtype):
    """Chunks that end within a position; few or many of a program."""
    monkeypatch.setattr(pairs, "CHUNK", 16)
    monkeypatch.setattr(_configs, "enough_programs", lambda device: programs)
    inputs, mixture = pair_case((4, 3, 5, e), dtype)
    with recorded() as launches:
        pairs.pairs(*inputs, [mixture])
    splits = next(launch.arguments[-1] for launch in launches if "splits" in launch.kernel.__name__)
    chunks = 5 * -(-e // 16)
    assert splits == (chunks if programs > 1 else 1)
    assert_close(inputs, mixture)


def test_a_long_row_is_more_than_one_chunk():
    assert_close(*pair_case((2, 2, 1, _pairs_configs.CHUNK + 9)))


@dtypes(F32, F64)
def test_logs_of_equal_variances_do_not_add_up_their_rounding(dtype):
    """A float32 log of each is off by up to 2^-24 of it, the same for all: 0.002 in 70,000."""
    stds = torch.full((1, 1, 70_000), 0.37, dtype=dtype)
    active, flag = torch.ones(1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    eps = torch.zeros((), dtype=dtype)
    found = _pairs_logs.log_determinants((stds,) * 4, (0, 1), eps, active, flag).item()
    v = (stds[0, 0, 0] ** 2).double()
    assert abs(found - 35_000 * (v.log() + math.log(2 * math.pi)).item()) < 1e-9 * 35_000
    assert flag.item() == 0


@shape
def test_without_mu(shape):
    (y, x, _, stds), mixture = pair_case(shape)
    assert_close((y, x, None, stds), mixture)


def test_tiles_without_an_active_position():
    """Of samples, of components, of both; and NaN wherever no pair looks."""
    N, M, S, E = 70, 35, 4, 5
    inputs, mixture = pair_case((N, M, S, E))
    mask = mixture.sample_mask
    mask[:64, 1], mask[N : N + 32, 2], mask[:, 3] = False, False, False
    poisoned = [t.masked_fill(~mask[..., None], torch.nan) for t in inputs]
    clean, _ = assert_close(inputs, mixture)
    upstream = torch.ones(1, 3, N, M, dtype=F64)
    for function in (pairs, reference):
        energies, *of_energies = evaluate(function, poisoned, mixture, upstream)
        assert all((g[~mask] == 0).all() for g in of_energies)
        assert not any(g.isnan().any() for g in of_energies)
        if function is pairs:
            assert torch.equal(energies, clean)


def test_nothing_active_at_all():
    inputs, mixture = pair_case((5, 3, 2, 7))
    mixture.sample_mask.zero_()
    upstream = torch.ones(1, 3, 5, 3, dtype=F64)
    energies, *gradients = evaluate(pairs, inputs, mixture, upstream)
    assert (energies == 0).all()
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize(
    "upstream",
    [
        torch.tensor(0.7, dtype=F64).expand(1, 3, 6, 5),
        torch.randn(1, 3, 5, 6, dtype=F64).mT,
        torch.randn(1, 3, 6, 10, dtype=F64)[..., ::2],
        torch.zeros(1, 3, 6, 5, dtype=F64),
        torch.tensor([1.0, 0.0, 0.0], dtype=F64)[:, None, None].expand(1, 3, 6, 5),
        torch.tensor([0.0, 0.0, 1.0], dtype=F64)[:, None, None].expand(1, 3, 6, 5),
    ],
    ids=["expanded", "transposed", "every other", "zero", "q", "k"],
)
def test_any_upstream_gradient(upstream):
    _, gradients = assert_close(*pair_case((6, 5, 2, 7)), upstream)
    if not upstream.any():
        assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("only", range(4), ids=NAMES)
def test_one_gradient(only):
    inputs, mixture = pair_case((5, 3, 2, 7))
    upstream = torch.randn(1, 3, 5, 3, dtype=F64)
    everything = pairs.pairs_backward(upstream, *inputs, None, [mixture], [True] * 4)
    wanted = [i == only for i in range(4)]
    found = pairs.pairs_backward(upstream, *inputs, None, [mixture], wanted)
    assert [gradient is not None for gradient in found] == wanted
    assert same_bits(found[only], everything[only])


def test_strides():
    inputs, mixture = pair_case((5, 3, 2, 7))
    upstream = torch.randn(1, 3, 5, 3, dtype=F64)
    y, x, mu, stds = inputs
    storage = torch.full((8, 2, 14), torch.nan)
    storage[..., ::2] = stds
    laid_out = y.permute(2, 1, 0).contiguous().permute(2, 1, 0), x, mu, storage[..., ::2]
    assert_same_bits(*(evaluate(pairs, t, mixture, upstream) for t in (inputs, laid_out)))
    assert_close((y, x, mu[:1, :1].expand(8, 2, 7), stds), mixture)


def test_addresses_beyond_32_bits():
    """Rows 2^30 elements apart: the last ones begin beyond 2^31."""
    inputs, mixture = pair_case((2, 2, 2, 3), F16)
    apart = [far_apart(tensor) for tensor in inputs]
    upstream = torch.randn(1, 3, 2, 2, dtype=F64)
    assert_same_bits(*(evaluate(pairs, t, mixture, upstream) for t in (inputs, apart)))


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
@pytest.mark.parametrize("own", [True, False], ids=["own stds", "entropy"])
def test_memory_is_written_before_it_is_read(shape, own):
    """Fresh memory full of NaN changes nothing."""
    inputs, mixture = pair_case(shape)
    if not own:
        mixture = mixture._replace(sample_eps=None)
    upstream = torch.randn(1, 3, *shape[:2], dtype=F64)
    plain = evaluate(pairs, inputs, mixture, upstream)
    with fresh_memory_full_of_nan():
        again = evaluate(pairs, inputs, mixture, upstream)
    assert_same_bits(again, plain)


@pytest.mark.parametrize("size", [1e-20, 1e-15, 1e15, 1e19, 1e20])
def test_variances_out_of_range(size):
    """q is that of standardised inputs, though no square is in the range of float32."""
    inputs, mixture = pair_case((5, 3, 2, 7))
    eps = torch.tensor(1e-5 * size**2, dtype=F64).to(F32)  # of a large size inf, if not for 1e-5
    mixture = mixture._replace(component_eps=eps, sample_eps=eps)
    scaled = [t * size for t in inputs]
    q = pairs.pairs(*scaled, [mixture])[0, 0]
    wide = [t.double() for t in scaled]
    true = reference.pairs(*wide, [mixture])[0, 0]
    (scale,), *_ = scales(scaled, [mixture], torch.zeros(1, 3, 5, 3))
    assert ((q - true).abs() <= 8 * torch.finfo(F32).eps * scale[0]).all()


@pytest.mark.parametrize(
    "least", [pytest.param(1e-20, id="tiny eps"), pytest.param(0.5, id="usual eps")]
)
def test_one_row_far_out_of_the_range_of_the_others(least):
    """Their eps is tiny or not; an infinite variance gives q = 0 and no NaN."""
    inputs, mixture = pair_case((5, 3, 2, 7))
    inputs[3][0:6] = least
    inputs[3][6], inputs[3][7] = 1e20, 3e38
    eps = torch.tensor(least**2 * 1e-5, dtype=F64).to(F32)
    mixture = mixture._replace(component_eps=eps, sample_eps=eps)
    upstream = torch.ones(1, 3, 5, 3, dtype=F64)
    energies, *gradients = evaluate(pairs, inputs, mixture, upstream)
    assert not energies.isnan().any()
    assert not any(g.isnan().any() for g in gradients)
    true = reference.pairs(*(t.double() for t in inputs), [mixture])[0, 0]
    (scale,), *_ = scales(inputs, [mixture], torch.zeros(1, 3, 5, 3))
    assert ((energies[0] - true).abs() <= 8 * torch.finfo(F32).eps * scale[0] + 1e-30).all()


@pairing
def test_near_duplicates_far_from_zero(pairing):
    """Samples next to centres at 5e5, where a product of rows would cancel."""
    inputs = mi_inputs(b=6, s=2, e=5, dtype=F32, offset=5e5, seed=3)
    means, stds, _, clean, noisy = inputs
    noisy[:3] = clean[3:] + means[3:] + 0.01 * stds[3:]
    noisy[4] = clean[0] + means[0]
    options = {"estimator": "logsumexp", "pairing": pairing}
    with use_backend("triton"):
        assert_rule10(lambda t: mi(t, **options), inputs, options)
