"""From the energies of all pairs to the terms of the loss: every backend and instruction path."""

import math

import fused_mi
import pytest
import torch
from blocks import logsumexp
from cases import assert_same_bits, fresh_memory_full_of_nan, same_bits
from fused_mi._building_blocks import Own
from fused_mi.cpu import _library
from fused_mi.ops import _triton
from fused_mi.reference import logsumexp as reference

F64 = torch.float64
EPS = torch.finfo(F64).eps
TOTAL, MAHALANOBIS, LOG_DETERMINANT, ASSIGNMENT, STD_LOG = range(5)
CPU_PATHS = [f"cpu {path}" for path in (_library.supported() if _library.usable()[0] else ())]
INTERPRETED = ["triton"] if _triton.serves("logsumexp", "cpu")[0] else []
# (D, N, M): single rows and columns, odd sizes, and blocks of columns with a rest.
SHAPES = [(1, 1, 1), (2, 1, 3), (1, 5, 1), (2, 4, 7), (1, 9, 8), (1, 33, 65), (1, 3, 1500)]
shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
needs_library = pytest.mark.skipif(not CPU_PATHS, reason="the library was not built")
owns = pytest.mark.parametrize("own", [None, 0, 2])


@pytest.fixture(params=["reference", *INTERPRETED, *CPU_PATHS])
def backend(request, monkeypatch):
    """Each backend, forced, with each of its instruction paths."""
    name, _, path = request.param.partition(" ")
    if path:
        monkeypatch.setenv("FUSED_MI_CPU", path)
    with fused_mi.use_backend(name):
        yield request.param


def energies_of(shape, spread=3.0, seed=0):
    directions, n, m = shape
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(directions, 3, n, m, generator=generator, dtype=F64)


def upstream_of(directions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(directions, 5, generator=generator, dtype=F64)


def looped(energies, own):
    """The terms by a loop over samples, each a softmax over its partners alone; for autograd."""
    directions, _, n, m = energies.shape
    found = []
    for d in range(directions):
        terms = torch.zeros(5, dtype=F64)
        for i in range(n):
            partners = [j for j in range(m) if own is None or j != i + own]
            q, g, k = energies[d, :, i, partners]
            log_partners = math.log(len(partners))
            log_r = (k - q - g).log_softmax(0)
            chosen = log_r.exp() > 0
            r, q, g, k, log_r = (t[chosen] for t in (log_r.exp(), q, g, k, log_r))
            value = log_partners - (k - q - g - log_r)[0]  # the same for every component
            parts = (r * q).sum(), (r * g).sum(), log_partners + (r * log_r).sum(), -(r * k).sum()
            terms = terms + torch.stack((value, *parts)) / n
        found.append(terms)
    return torch.stack(found)


def formula(energies, own):
    """The terms in torch's own operators."""
    own = None if own is None else Own(own)
    rows = reference.logsumexp(energies, own)
    return reference.means(rows, Own.partners(own, energies.shape[-1]))


def evaluate(function, energies, own, upstream):
    """Terms and the gradient of the energies."""
    leaf = energies.clone().requires_grad_()
    terms = function(leaf, own)
    return terms.detach(), torch.autograd.grad(terms, leaf, upstream)[0]


def assert_close(energies, own):
    """Against the loop, relative to the sizes of what is added up."""
    upstream = upstream_of(len(energies))
    ours, of_ours = evaluate(logsumexp, energies, own, upstream)
    true, of_true = evaluate(looped, energies, own, upstream)
    # A density is wrong by as much as its largest energy is, and its responsibility relatively so.
    size = 1 + energies[energies.isfinite()].abs().max()
    assert ((ours - true).abs() <= 32 * EPS * size).all()
    n = energies.shape[2]
    scale = upstream.abs().max() * size * size / n
    assert ((of_ours - of_true).abs() <= 32 * EPS * scale).all()
    return ours, of_ours


@shape
@owns
def test_terms_and_gradients(backend, shape, own):
    directions, n, m = shape
    if own is not None and (m == 1 or n + own > m):
        m = n + own + 1
    assert_close(energies_of((directions, n, m)), own)


@owns
@pytest.mark.parametrize("spread", [1e-3, 30.0, 1e6])
def test_sizes_of_the_energies(backend, spread, own):
    """From equal responsibilities to one component that takes all."""
    terms, gradient = assert_close(energies_of((1, 6, 10), spread), own)
    if spread > 1e3:
        assert abs(terms[0, ASSIGNMENT] - math.log(10 - (own is not None))) < 1e-12
        assert (gradient == 0).sum() == 3 * 6 * 9


def test_the_parts_add_up_to_the_total(backend):
    terms = logsumexp(energies_of((2, 5, 6)), None)
    torch.testing.assert_close(terms[:, 1:].sum(1), terms[:, TOTAL], rtol=1e-13, atol=1e-13)


def test_the_gradient_of_the_sum_of_the_parts_is_that_of_the_total(backend):
    energies = energies_of((1, 5, 6))
    only_total, all_parts = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1.0, 1, 1, 1]], dtype=F64)
    _, of_total = evaluate(logsumexp, energies, None, only_total[None])
    _, of_parts = evaluate(logsumexp, energies, None, all_parts[None])
    torch.testing.assert_close(of_parts, of_total, rtol=1e-13, atol=1e-16)


def test_an_infinite_distance_has_no_part(backend):
    energies = energies_of((1, 5, 9))
    energies[0, 0, 1, 3] = energies[0, 0, 2, 1:] = math.inf
    energies[0, 1, 4, 5] = math.inf
    terms, gradient = assert_close(energies, None)
    assert terms.isfinite().all()
    infinite = (energies == math.inf).any(1, keepdim=True)
    assert (gradient[infinite.expand_as(gradient)] == 0).all()


@owns
def test_rows_whose_densities_are_all_zero(backend, own):
    """The total is infinite; the parts are those of equal responsibilities, and constant."""
    n, m = 4, 700
    energies = energies_of((1, n, m))
    energies[0, 0, 2], energies[0, 1, 3] = math.inf, math.inf
    upstream = upstream_of(1)
    terms, gradient = evaluate(logsumexp, energies, own, upstream)
    assert (terms[0, [TOTAL, MAHALANOBIS, LOG_DETERMINANT]] == math.inf).all()
    assert not terms.isnan().any() and not gradient.isnan().any()
    met = torch.ones(n, m, dtype=torch.bool)
    if own is not None:
        met[range(n), range(own, n + own)] = False
    equal = met[2:].double() / (m - (own is not None))
    _, q, g, _, minus_k = upstream[0]
    for found, of_part in zip(gradient[0], (q, g, -minus_k), strict=True):
        torch.testing.assert_close(found[2:], of_part * equal / n, rtol=1e-13, atol=0)
    # The other terms, with a row of finite energies in place of the two.
    weights = torch.zeros(n, m, dtype=F64)
    weights[2:] = equal
    others = logsumexp(energies[:, :, :2], own)[0] * 2
    k_mean = (energies[0, 2] * weights).sum()
    assert terms[0, STD_LOG].item() == pytest.approx(((others[STD_LOG] - k_mean) / n).item())
    assert terms[0, ASSIGNMENT].item() == pytest.approx((others[ASSIGNMENT] / n).item())


@pytest.mark.parametrize("matrix", range(3), ids="qgk")
def test_nan_reaches_the_terms_and_the_row(backend, matrix):
    energies = energies_of((2, 4, 700))
    energies[0, matrix, 1, 600] = math.nan
    plain, of_plain = evaluate(logsumexp, energies_of((2, 4, 700)), None, upstream_of(2))
    terms, gradient = evaluate(logsumexp, energies, None, upstream_of(2))
    assert terms[0].isnan().all() and same_bits(terms[1], plain[1])
    assert gradient[0, :, 1].isnan().all()
    others = [0, 2, 3]
    assert same_bits(gradient[0, :, others], of_plain[0, :, others])
    assert same_bits(gradient[1], of_plain[1])


def test_rows_of_nan_are_not_rows_without_density(backend):
    energies = energies_of((1, 2, 5))
    energies[0, 0, 0], energies[0, 0, 1] = math.nan, math.inf
    energies[0, 0, 1, 2] = math.nan
    terms, gradient = evaluate(logsumexp, energies, None, upstream_of(1))
    assert terms.isnan().all() and gradient.isnan().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_left_out_has_no_influence(backend, value):
    energies = energies_of((1, 5, 6))
    plain = evaluate(logsumexp, energies, 1, upstream_of(1))
    energies[0, :, range(5), range(1, 6)] = value
    spoiled = evaluate(logsumexp, energies, 1, upstream_of(1))
    assert_same_bits(plain, spoiled)
    assert (spoiled[1][0, :, range(5), range(1, 6)] == 0).all()


def test_nan_and_expanded_upstream(backend):
    energies = energies_of((2, 3, 4), 1e6)
    _, gradient = evaluate(logsumexp, energies, None, torch.ones(1, 1, dtype=F64).expand(2, 5))
    _, full = evaluate(logsumexp, energies, None, torch.ones(2, 5, dtype=F64))
    assert same_bits(gradient, full)
    upstream = torch.ones(2, 5, dtype=F64)
    upstream[0, TOTAL] = math.nan
    _, spoiled = evaluate(logsumexp, energies, None, upstream)
    chosen = (energies[:, 2] - energies[:, 0] - energies[:, 1]).softmax(-1) > 0
    assert spoiled[0, :, chosen[0]].isnan().all()
    assert (spoiled[0, :, ~chosen[0]] == 0).all() and same_bits(spoiled[1], full[1])


@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_origin_that_is_not_there(backend, wrong):
    """An error of the library, NaN elsewhere, in its row alone."""
    own = Own(of_samples=torch.tensor([0, 1, wrong, 3, 4]), left_out=False)
    if backend.startswith("cpu"):
        with pytest.raises(RuntimeError, match=f"origins: no component {wrong}"):
            logsumexp(energies_of((1, 5, 6)), own)
        return
    terms = logsumexp(energies_of((1, 5, 6)), own, each=True)
    assert terms[0, TOTAL].isnan().nonzero()[:, 0].tolist() == [2]
    assert terms[0, 1:].isfinite().all()


def test_strides_do_not_matter(backend):
    energies = energies_of((2, 5, 7))
    laid_out = energies.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    results = [evaluate(logsumexp, e, 0, upstream_of(2)) for e in (energies, laid_out)]
    assert_same_bits(*results)


def test_mixtures_do_not_meet(backend):
    energies, upstream = energies_of((3, 5, 7)), upstream_of(3)
    together = evaluate(logsumexp, energies, None, upstream)
    for d in range(3):
        alone = evaluate(logsumexp, energies[d : d + 1], None, upstream[d : d + 1])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[d : d + 1], other, rtol=1e-15, atol=0)


def test_memory_is_written_before_it_is_read(backend):
    energies = energies_of((2, 5, 600))
    energies[0, 0, 1] = math.inf
    before = evaluate(logsumexp, energies, 0, upstream_of(2))
    with fresh_memory_full_of_nan():
        again = evaluate(logsumexp, energies, 0, upstream_of(2))
    assert_same_bits(before, again)


@needs_library
@pytest.mark.parametrize("shape", [(1, 1500, 1024), (2, 65, 700), (1, 3, 5)], ids=str)
def test_bits_do_not_depend_on_threads(monkeypatch, shape):
    """The first gradient goes past the caches."""
    energies, upstream = energies_of(shape), upstream_of(shape[0])
    for path in _library.supported():
        monkeypatch.setenv("FUSED_MI_CPU", path)
        found = []
        for threads in (1, 2, 64, 1):
            torch.set_num_threads(threads)
            with fused_mi.use_backend("cpu"):
                found.append(evaluate(logsumexp, energies, None, upstream))
        for again in found[1:]:
            assert_same_bits(found[0], again)


@needs_library
def test_gradients_that_go_past_the_caches():
    """Large ones do, small ones do not: the same bits."""
    rows = energies_of((1, 4, 1024))
    large, upstream = rows.repeat(1, 1, 512, 1), upstream_of(1)
    with fused_mi.use_backend("cpu"):
        _, small = evaluate(logsumexp, rows, None, upstream)
        _, gradient = evaluate(logsumexp, large, None, upstream)
    assert gradient.numel() * 8 > 2**25
    assert same_bits(gradient * 512, small.repeat(1, 1, 512, 1))  # 1 / N is a power of two


@needs_library
@pytest.mark.parametrize("path", CPU_PATHS)
def test_the_exponential_is_that_of_every_double(monkeypatch, path):
    """To two units; the gradient of q is exp(k - q - g - log_sum) for one sample and any state."""
    from fused_mi.cpu.logsumexp import logsumexp_backward

    monkeypatch.setenv("FUSED_MI_CPU", path.split()[1])
    edges = [0.0, -0.0, -745.1, -745.2, -708.5, -720.0, -1e-300, -5e-324, -1e308, -math.inf]
    x = torch.cat((torch.linspace(-760, 0.5, 100003, dtype=F64), torch.tensor(edges, dtype=F64)))
    x = torch.cat((x, torch.linspace(-2, 0, 100001, dtype=F64)))
    energies = torch.stack((torch.zeros_like(x), torch.zeros_like(x), x))[None, :, None]
    state = torch.zeros(1, 5, 1, dtype=F64)
    total = torch.tensor([[[1.0], [0], [0], [0], [0]]], dtype=F64)
    found = logsumexp_backward(total, energies, state, None)[0, 0, 0]
    units = (found - x.exp()).abs() / (x.exp().abs() * EPS).clamp(min=5e-324)
    assert units.max() <= 2
    assert found[x == -math.inf] == 0 and found[x < -746].max() == 0


@owns
def test_derivatives_of_second_order_of_the_formula(own):
    energies = energies_of((1, 2, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: formula(e, own), energies)
    assert torch.autograd.gradgradcheck(lambda e: formula(e, own), energies)


def test_second_derivatives_of_a_row_without_density_are_not_nan():
    energies = energies_of((1, 3, 4))
    energies[0, 0, 1], energies[0, 0, 2, 3] = math.inf, math.inf
    energies.requires_grad_()
    terms = formula(energies, None)
    (first,) = torch.autograd.grad(terms[0, 1:].sum() + terms[0, 0], energies, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), energies)
    assert not first.isnan().any() and not second.isnan().any()


def test_float32_where_there_is_no_float64():
    """The plain path computes in the dtype of the energies."""
    energies = energies_of((1, 5, 6)).float()
    terms, state = formula(energies, None), reference.logsumexp(energies, None)
    upstream = torch.ones_like(terms)[..., None] / 5
    gradient = reference.logsumexp_backward(upstream, energies, state, None)
    assert terms.dtype == state.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(terms, looped(energies.double(), None).float(), rtol=1e-5, atol=1e-5)
