"""The CPU kernels of the pairs, on every instruction path that this machine has."""

import pytest
import torch
from cases import assert_same_bits, mi_inputs, mixtures, same_bits
from fused_mi import pairwise_square_mahalanobis_distance
from fused_mi._mixture import Mixture
from fused_mi.cpu import pairs
from fused_mi.reference import pairs as reference
from marks import dtypes, every_dtype, pairing
from pair_rules import NAMES, pair_case, scales, upstream_of

pytestmark = pytest.mark.usefixtures("path")


def case(n=5, m=3, s=4, e=37, **more):
    inputs, mixture = pair_case((n, m, s, e), **more)
    return inputs, [mixture]


def both_directions(tensors, given, upstream=None, wanted=(True,) * 4):
    """Energies and gradients of the kernels."""
    energies = pairs.pairs(*tensors, given)
    upstream = upstream_of(energies) if upstream is None else upstream
    return [energies, *pairs.pairs_backward(upstream, *tensors, None, given, wanted)]


def assert_close(tensors, given, upstream=None):
    """Against the plain path in float64: 8 eps of sum |terms|."""
    wide = [None if t is None else t.double() for t in tensors]
    true = reference.pairs(*wide, given)
    upstream = upstream_of(true) if upstream is None else upstream
    with torch.no_grad():
        gradients = reference.pairs_backward(upstream, *wide, None, given, [True] * 4)
    found = both_directions(tensors, given, upstream)
    bounds = scales(tensors, given, upstream)
    present = [t for t in tensors if t is not None]
    acc = torch.float64 if any(t.dtype == torch.float64 for t in present) else torch.float32
    for name, ours, plain, scale in zip(
        ("energies", *NAMES), found, [true, *gradients], bounds, strict=True
    ):
        if plain is None:
            assert ours is None
            continue
        eps = torch.finfo(acc if name == "energies" else ours.dtype).eps
        eps = max(eps, torch.finfo(acc).eps)
        excess = ((ours.double() - plain).abs() - 8 * eps * scale).max().item()
        tiny = torch.finfo(ours.dtype).tiny  # a gradient of float16 that is denormal
        assert excess <= tiny, f"{name}: beyond the bound by {excess:.3e}"
    return found


@every_dtype
@pytest.mark.parametrize(
    "shape",
    [(5, 3, 4, 37), (1, 1, 1, 1), (3, 9, 2, 16), (7, 6, 70, 3), (131, 67, 2, 20), (4, 5, 1, 1100)],
    ids=str,
)
def test_any_upstream(shape, dtype):
    assert_close(*case(*shape, dtype=dtype, seed=3))


@pytest.mark.parametrize("shape", [(140, 130, 1, 30), (6, 5, 300, 16), (3, 2, 40, 700)], ids=str)
def test_many_tiles_and_splits(shape):
    tensors, given = case(*shape, seed=4, offset=100.0)
    assert_close(tensors, given)
    assert_close(tensors, [given[0]._replace(sample_mask=torch.ones_like(given[0].sample_mask))])


@pairing
def test_both_roles_and_mixed_dtypes(pairing):
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=3, e=40, dtype=torch.float32, seed=5)
    tensors = noisy.half(), clean, means.bfloat16(), stds
    given = mixtures(pairing, mask)
    assert_close(tensors, given)
    assert_close((noisy.half(), clean.half(), means.bfloat16(), stds.double()), given)


@every_dtype
def test_without_mu_and_without_variances_of_the_samples(dtype):
    (y, x, _, stds), _ = case(6, 9, dtype=dtype, seed=6)
    mask = torch.rand(15, 4) < 0.7
    given = [Mixture.of_all_rows(mask[:6], mask[6:], torch.tensor(1e-3))]
    assert_close((y[:6], x[6:], None, stds[6:]), given)


def test_rows_outside_of_every_range_have_zero_gradients():
    means, stds, mask, clean, noisy = mi_inputs(b=9, s=2, e=3, seed=7)
    eps = torch.tensor(1e-3)
    assert_close((noisy, clean, means, stds), [Mixture(mask, mask, eps, eps, (1, 3), (4, 8))])


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3])
def test_rows_that_are_almost_equal(distance):
    (y, x, mu, stds), given = case(8, 8, dtype=torch.float32, seed=8, offset=3.0)
    x[8:] = x[8]
    y[:8] = x[8] + mu[8] + distance * torch.randn_like(y[:8])
    mu[8:] = mu[8] + distance * torch.randn_like(mu[8:])
    assert_close((y, x, mu, stds), given)
    y[:8] = x[8:]
    q = pairwise_square_mahalanobis_distance(y[:8], x[8:], stds[8:], given[0].sample_mask[:8])
    assert (q.diagonal() == 0).all()


@every_dtype
def test_layouts_do_not_matter(dtype):
    (y, x, mu, stds), given = case(5, 5, 6, 34, dtype=dtype, seed=9)
    mu, stds = mu[:1].expand(10, 6, 34), stds[:, :1].expand(10, 6, 34)
    views = [y.transpose(0, 1).contiguous().transpose(0, 1), torch.cat((x, x), 2)[..., 34:]]
    views += [mu, stds]
    copies = [t.contiguous() for t in views]
    last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in copies]
    ours = both_directions(views, given)
    for others in (copies, last):
        assert_same_bits(ours, both_directions(others, given))


@every_dtype
def test_expanded_zero_and_nan_upstream(dtype):
    tensors, given = case(6, 7, dtype=dtype, seed=10)
    mask = given[0].sample_mask
    mask[:, :2] = True
    mask[:, 2:] = False
    energies = pairs.pairs(*tensors, given)
    one = torch.ones((), dtype=torch.float64)
    expanded = both_directions(tensors, given, one.expand(energies.shape))
    full = both_directions(tensors, given, torch.ones_like(energies))
    assert_same_bits(expanded, full)
    zero = both_directions(tensors, given, torch.zeros_like(energies))[1:]
    assert not any(g.any() for g in zero)
    spoiled = torch.ones_like(energies)
    spoiled[0, 0, 2, 3] = torch.nan
    found = both_directions(tensors, given, spoiled)[1:]
    rows = ([2], [9], [9], [9])  # the sample of this pair, and its component
    for gradient, plain, row in zip(found, full[1:], rows, strict=True):
        assert gradient[row, :2].isnan().all()
        others = [r for r in range(13) if r not in row]
        assert same_bits(gradient[others], plain[others])
        assert not gradient[:, 2:].any()


def test_one_position_and_disjoint_masks():
    tensors, given = case(4, 4, 5, 20, seed=12)
    mask = given[0].sample_mask
    mask[:] = False
    mask[2, 3] = mask[5, 3] = True
    energies, *_ = assert_close(tensors, given)
    assert energies.count_nonzero() == 3
    mask[5, 3], mask[5, 2] = False, True
    energies, *gradients = both_directions(tensors, given)
    assert not energies.any() and not any(g.any() for g in gradients)


def test_an_infinite_sample_reaches_only_the_pairs_that_share_the_position():
    (y, x, mu, stds), given = case(5, 6, 3, 20, seed=13)
    mask = given[0].sample_mask
    mask[:] = True
    mask[7, 1] = False  # component 2
    plain, *_ = both_directions((y, x, mu, stds), given)
    y[1, 1, 4] = torch.inf
    upstream = torch.ones_like(plain)
    upstream[0, 0, 1] = 0  # all pairs of this sample but one that lacks the position
    upstream[0, 0, 1, 2] = 1
    energies, *gradients = both_directions((y, x, mu, stds), given, upstream)
    reached = energies[0, 0] == torch.inf
    assert reached[1].tolist() == [True, True, False, True, True, True]
    assert reached.sum() == 5
    # Infinite sums are found once more in float64.
    torch.testing.assert_close(energies[0, 0][~reached], plain[0, 0][~reached], rtol=2e-6, atol=0)
    assert all(g.isfinite().all() for g in gradients)


@pairing
@pytest.mark.parametrize("sigma", [0.0, 1e-30, 1e-20, 1e-7, 1e6, 1e20, 3e38])
@pytest.mark.parametrize("where", [slice(None), slice(0, 3), slice(3, None), (4, 0, 1)], ids=str)
def test_extreme_variances(pairing, sigma, where):
    """No NaN; logs as those of float64: they never overflow."""
    means, stds, mask, clean, noisy = mi_inputs(b=6, s=2, e=21, dtype=torch.float32, seed=14)
    stds[where] = sigma
    eps = torch.tensor(1e-38)
    given = [m._replace(component_eps=eps, sample_eps=eps) for m in mixtures(pairing, mask)]
    ours = both_directions((noisy, clean, means, stds), given)
    assert not any(t.isnan().any() for t in ours)
    theirs = reference.pairs(*(t.double() for t in (noisy, clean, means, stds)), given)
    torch.testing.assert_close(ours[0][:, 1:], theirs[:, 1:], rtol=1e-5, atol=1e-3)
    finite = ours[0].isfinite()
    torch.testing.assert_close(ours[0][finite], theirs[finite], rtol=1e-3, atol=1e-3)


@pairing
@pytest.mark.parametrize("shape", [(260, 2, 129), (12, 1, 3), (16, 70, 64), (8, 3, 1500)], ids=str)
@dtypes(torch.float32, torch.bfloat16)
def test_bits_do_not_depend_on_threads(pairing, shape, dtype):
    means, stds, mask, clean, noisy = mi_inputs(*shape, dtype=dtype, seed=15)
    found = []
    for threads in (1, 2, 4, 1):
        torch.set_num_threads(threads)
        found.append(both_directions((noisy, clean, means, stds), mixtures(pairing, mask)))
    for again in found[1:]:
        assert_same_bits(again, found[0])


@pairing
@pytest.mark.parametrize("wanted", ["y", "x", "mu stds", "stds"])
def test_single_gradients(pairing, wanted):
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=3, e=18, dtype=torch.float32, seed=17)
    given, tensors = mixtures(pairing, mask), (noisy, clean, means, stds)
    chosen = [name in wanted.split() for name in NAMES]
    everything = both_directions(tensors, given)[1:]
    ours = both_directions(tensors, given, wanted=chosen)[1:]
    for one, full, needed in zip(ours, everything, chosen, strict=True):
        assert same_bits(one, full) if needed else one is None


@dtypes(torch.float32, torch.bfloat16)
def test_gradients_that_go_past_the_caches(dtype):
    """Large ones do, small ones do not: the same bits."""
    repeats = 64 if dtype == torch.float32 else 128
    tensors, given = case(5, 3, 4, 2048, dtype=dtype, seed=18)
    wide = [t.repeat(1, repeats, 1) for t in tensors]
    masks = given[0].sample_mask.repeat(1, repeats)
    upstream = upstream_of(torch.empty(1, 3, 5, 3))
    small = both_directions(tensors, given, upstream)
    large = [given[0]._replace(sample_mask=masks, component_mask=masks)]
    large = both_directions(wide, large, upstream)
    for a, b in zip(small[1:], large[1:], strict=True):
        assert b.numel() * b.element_size() > 2**23
        assert same_bits(a.repeat(1, repeats, 1), b)


def test_empty_batches_and_positions():
    (y, x, mu, stds), given = case(dtype=torch.float64)
    for rows in (((0, 0), (5, 8)), ((0, 5), (5, 5))):
        empty = [given[0]._replace(sample_rows=rows[0], component_rows=rows[1])]
        energies, *gradients = both_directions((y, x, mu, stds), empty)
        assert energies.numel() == 0 and not any(g.any() for g in gradients)
    mixture = given[0]._replace(
        sample_mask=given[0].sample_mask[:, :0], component_mask=given[0].component_mask[:, :0]
    )
    energies, *_ = both_directions([t[:, :0] for t in (y, x, mu, stds)], [mixture])
    assert energies.shape == (1, 3, 5, 3) and not energies.any()
