"""The CPU kernels of the moments and of the variance, on every instruction path of this machine."""

import functools

import pytest
import torch
from cases import PAIRINGS, assert_same_bits, mi_inputs, mixtures, same_bits
from fused_mi._mixture import Mixture
from fused_mi.cpu import moments, variance
from fused_mi.reference import moments as reference
from fused_mi.reference import variance as reference_variance
from marks import dtypes, every_dtype, pairing
from oracle import LOG_2PI

pytestmark = pytest.mark.usefixtures("path")

UPSTREAM = 0.3, -2.0, 5.0  # gradients of the sums of q, g and k


def both_directions(tensors, given, wanted=(True,) * 4):
    """Sums, state and gradients of the kernels, for a gradient of each sum of its own. The state is
    NaN where float32 was left, or float64."""
    sums, state = moments.moments(*tensors, given)
    upstream = torch.tensor(UPSTREAM, dtype=torch.float64).expand(len(given), 3)
    found = moments.moments_backward(upstream, *tensors, state, given, wanted)
    return [sums, state, *(g for g in found if g is not None)]


def plain(tensors, given):
    sums, state = reference.moments(*tensors, given)
    upstream = torch.tensor(UPSTREAM, dtype=torch.float64).expand(len(given), 3)
    return [sums, state, *reference.moments_backward(upstream, *tensors, None, given, [True] * 4)]


def in_float64(tensors, given):
    """How the kernels compute. Without the diagonal, also few rows."""
    few = given[0].exclude_diagonal and len(tensors[0]) < 8
    return few or any(t.dtype == torch.float64 for t in tensors)


def assert_like_the_plain_path(tensors, given):
    precision = 1e-12 if in_float64(tensors, given) else 1e-5
    for ours, theirs in zip(both_directions(tensors, given), plain(tensors, given), strict=True):
        assert ours.dtype == theirs.dtype
        eps = torch.finfo(ours.dtype).eps
        wide = theirs.double()
        tolerance = max(eps, precision) * (1 + wide.abs().max().item())
        torch.testing.assert_close(ours.double(), wide, rtol=4 * eps, atol=tolerance)


def terms_of_leave_one_out(tensors, given):
    """The magnitudes of what is added up, of the sums and of each gradient element."""
    y, x, mu, sigma = (t.double() for t in tensors)
    (mixture,) = given
    mask = mixture.sample_mask.double()
    of_q, of_g, of_k = (abs(u) for u in UPSTREAM)
    v, own_v = sigma**2 + mixture.component_eps, sigma**2 + mixture.sample_eps
    found = [torch.zeros_like(y) for _ in range(4)]
    sums = torch.zeros(3, dtype=torch.float64)
    for s in range(y.shape[1]):
        pairs = mask[:, s, None] * mask[:, s] * (1 - torch.eye(len(y), dtype=torch.float64))
        for e in range(y.shape[2]):
            at = slice(None), s, e
            distance = (y[at][:, None] - (x + mu)[at]).abs()
            weighted = pairs * distance / v[at]
            found[0][at] = of_q * weighted.sum(1)
            found[1][at] = found[2][at] = of_q * weighted.sum(0)
            squares, partners = (weighted * distance).sum(0), pairs.sum(0)
            found[3][at] = sigma[at] / v[at] * (of_g * partners + of_q * squares / v[at])
            found[3][at] += of_k * partners * sigma[at] / own_v[at]
            logs = [(partners * (t[at].log().abs() + LOG_2PI)).sum() for t in (v, own_v)]
            sums += torch.stack((squares.sum(), *logs)) / 2
    return [sums, *found]


SHAPES = [(3, 2, 5), (4096, 1, 3), (1200, 2, 40), (560, 70, 3)]


def split_inputs(shape):
    means, stds, mask, clean, noisy = mi_inputs(*shape, dtype=torch.float32, seed=3, offset=100.0)
    noisy[0] += 50  # the shift is far from the mean
    return (noisy, clean, means, stds), mask


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batches_that_are_split_and_merged(shape):
    tensors, mask = split_inputs(shape)
    for each in PAIRINGS[2 * (len(mask) % 2) :]:
        assert_like_the_plain_path(tensors, mixtures(each, mask))


@functools.cache
def true_leave_one_out(shape):
    tensors, mask = split_inputs(shape)
    given = mixtures("leave_one_out", mask)
    sums, _, *gradients = plain([t.double() for t in tensors], given)
    return [sums, *gradients], terms_of_leave_one_out(tensors, given)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leave_one_out_of_split_batches_errs_by_no_more_than_its_terms(shape):
    """The floor of rule 10, without what the plain formula errs by."""
    tensors, mask = split_inputs(shape)
    ours, _, *gradients = both_directions(tensors, mixtures("leave_one_out", mask))
    assert_by_terms([ours, *gradients], *true_leave_one_out(shape))


def assert_by_terms(found, true, terms):
    for ours, exact, added in zip(found, true, terms, strict=True):
        error = (ours.double() - exact).abs()
        assert (error <= 8 * torch.finfo(torch.float32).eps * added).all()


@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("rows", [8, 17, 64, 300])
@pytest.mark.parametrize("which", [0, 3, -1])
def test_leave_one_out_where_a_component_is_far_and_its_sample_is_not(distance, rows, which):
    """In the gradient of that sample it would take the digits of all others."""
    means, stds, mask, clean, noisy = mi_inputs(rows, 2, 20, dtype=torch.float32, seed=4)
    clean[which] += distance
    tensors, given = (noisy, clean, means, stds), mixtures("leave_one_out", mask)
    ours, _, *gradients = both_directions(tensors, given)
    true, _, *true_gradients = plain([t.double() for t in tensors], given)
    terms = terms_of_leave_one_out(tensors, given)
    assert_by_terms([ours, *gradients], [true, *true_gradients], terms)


@pairing
@every_dtype
def test_layouts_do_not_matter(pairing, dtype):
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=5, e=34, dtype=dtype, seed=5)
    means, stds, mask = means[:1].expand(8, 5, 34), stds[:, :1].expand(8, 5, 34), mask[:1]
    mask = mask.expand(8, 5)
    views = [
        noisy.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat((clean, clean), 2)[..., 34:],
        means,
        stds,
    ]
    striped = torch.stack((mask, ~mask), -1)[..., 0]
    copies = [t.contiguous() for t in views]
    assert not any(t.is_contiguous() for t in (*views, striped))
    ours = both_directions(views, mixtures(pairing, striped))
    last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in copies]
    for others in (copies, last):
        assert_same_bits(ours, both_directions(others, mixtures(pairing, mask)))


@pairing
@pytest.mark.parametrize("sigma", [0.0, 1e-30, 1e-20, 1e-7, 1e6, 1e20, 3e38])
@pytest.mark.parametrize("where", [slice(None), slice(0, 3), slice(3, None), (4, 0, 1)], ids=str)
def test_extreme_variances(pairing, sigma, where):
    """No NaN, and logs as those of float64: they never overflow."""
    means, stds, mask, clean, noisy = mi_inputs(b=6, s=2, e=21, dtype=torch.float32, seed=7)
    stds[where] = sigma
    given = mixtures(pairing, mask, eps=1e-38)
    ours = both_directions((noisy, clean, means, stds), given)
    assert not any(t.isnan().any() for t in (ours[0], *ours[2:]))
    theirs, _ = reference.moments(*(t.double() for t in (noisy, clean, means, stds)), given)
    torch.testing.assert_close(ours[0][:, 1:], theirs[:, 1:], rtol=1e-5, atol=1e-3)
    if ours[0][:, 0].isfinite().all():
        torch.testing.assert_close(ours[0], theirs, rtol=1e-3, atol=1e-3)


@pairing
@pytest.mark.parametrize("power", [-18, -8, 0, 8, 18, 30])
@dtypes(torch.float32, torch.float64)
def test_scale(pairing, power, dtype):
    """Everything times a power of two: q stays, whichever way the variances took."""
    means, stds, mask, clean, noisy = mi_inputs(b=6, s=2, e=21, dtype=dtype, seed=8)
    power *= 1 if dtype == torch.float32 else 8
    factor = 2.0**power
    scaled = [t * factor for t in (noisy, clean, means, stds)]
    given = [m._replace(component_eps=m.component_eps * 0, sample_eps=m.sample_eps * 0)
             for m in mixtures(pairing, mask)]  # fmt: skip
    ours, plain = (both_directions(t, given) for t in (scaled, (noisy, clean, means, stds)))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours[0][:, 0], plain[0][:, 0], rtol=tolerance, atol=0)
    for a, b in zip(ours[2:], plain[2:], strict=True):
        torch.testing.assert_close(a * factor, b, rtol=tolerance, atol=1e2 * tolerance)


@pairing
@pytest.mark.parametrize("shape", [(128, 3, 129), (3000, 1, 3), (16, 70, 64)], ids=str)
@dtypes(torch.float32, torch.bfloat16)
def test_bits_do_not_depend_on_threads(pairing, shape, dtype):
    means, stds, mask, clean, noisy = mi_inputs(*shape, dtype=dtype, seed=9)
    found = []
    for threads in (1, 2, 4, 1):
        torch.set_num_threads(threads)
        given = mixtures(pairing, mask)
        found.append(both_directions((noisy, clean, means, stds), given))
        found[-1] += variance.variance(stds, [(mask, (0, len(mask)))], torch.float32, 100.0)
    for again in found[1:]:
        assert_same_bits(again, found[0])


@pairing
@pytest.mark.parametrize("wanted", ["y", "x", "mu stds", "stds"])
def test_single_gradients(pairing, wanted):
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=3, e=18, dtype=torch.float32, seed=11)
    given, tensors = mixtures(pairing, mask), (noisy, clean, means, stds)
    wanted = [name in wanted.split() for name in ("y", "x", "mu", "stds")]
    everything = both_directions(tensors, given)[2:]
    ours = both_directions(tensors, given, wanted)[2:]
    chosen = [g for g, needed in zip(everything, wanted, strict=True) if needed]
    assert_same_bits(ours, chosen)


@dtypes(torch.float32, torch.bfloat16)
def test_gradients_that_go_past_the_caches(dtype):
    """Large ones do, small ones do not: the same bits."""
    shape = (8, 256, 2048) if dtype == torch.float32 else (16, 256, 2048)
    means, stds, mask, clean, noisy = (
        t.clone() for t in mi_inputs(shape[0], 4, 2048, dtype=dtype, seed=12)
    )
    wide = [t.repeat(1, 64, 1) for t in (noisy, clean, means, stds)]
    small = both_directions((noisy, clean, means, stds), mixtures("sub_batch", mask))
    large = both_directions(wide, mixtures("sub_batch", mask.repeat(1, 64)))
    for a, b in zip(small[2:], large[2:], strict=True):
        assert b.shape == shape
        assert same_bits(a.repeat(1, 64, 1), b)


@pairing
@every_dtype
@pytest.mark.parametrize("sigma", [1.0, 1e-12])
def test_every_instruction_path_gives_the_same_bits(monkeypatch, path, pairing, dtype, sigma):
    """But for the order in which logs and the sums over features are added up."""
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=3, e=53, dtype=dtype, seed=17)
    tensors, given = (noisy, clean, means, stds * sigma), mixtures(pairing, mask)
    ours = both_directions(tensors, given)
    monkeypatch.setenv("FUSED_MI_CPU", "plain")
    plain = both_directions(tensors, given)
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-5)
    assert_same_bits(ours[1:], plain[1:])


def test_rows_outside_of_every_range_have_zero_gradients():
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=2, e=3, seed=13)
    eps = torch.tensor(1e-3)
    given = [Mixture(mask, mask, eps, eps, (1, 3), (4, 7))]
    assert_like_the_plain_path((noisy, clean, means, stds), given)


def test_samples_without_variances_of_their_own():
    means, stds, mask, clean, noisy = mi_inputs(b=9, s=2, e=30, dtype=torch.float32, seed=14)
    for rows in (9, 5):
        given = [Mixture.of_all_rows(mask[:rows], mask, torch.tensor(1e-3))]
        assert_like_the_plain_path((noisy[:rows], clean, means, stds), given)


@every_dtype
def test_variance(dtype):
    values = torch.tensor([0.0, -3.0, torch.nan, torch.inf, 6e-8, 2.0, 1e30], dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for chosen in (range(7), [1, 2, 5], [0], [0, 2, 3], [6], [1]):
        stds = values[list(chosen)].repeat(7).reshape(1, 1, -1).repeat(3, 2, 1).to(dtype)
        stds[:, 1] = 1e-3
        mask = torch.tensor([[True, False]] * 3)
        arguments = stds, [(mask, (1, 3))], wide, 100.0
        (ours,), (plain,) = variance.variance(*arguments), reference_variance.variance(*arguments)
        assert same_bits(ours, plain), (chosen, ours, plain)
