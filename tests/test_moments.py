"""Weighted moments, their exact merge, and the three sums over pairs they give."""

import itertools

import pytest
import torch
from blocks import moments, pairs
from cases import mi, mi_inputs, scoring_of
from fused_mi import use_backend
from fused_mi._estimators import moments_in
from fused_mi._mixture import Mixture
from fused_mi.reference import estimators
from fused_mi.reference.moments import Moments, merge, squared_distances, weighted_moments
from marks import pairing

F32, F64 = torch.float32, torch.float64


def rows(count, seed, offset=0.0, zero_share=0.3):
    gen = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 3, 2, generator=gen, dtype=F64) + offset
    weights = torch.rand(count, 3, 2, generator=gen, dtype=F64)
    weights[torch.rand(count, 3, 2, generator=gen) < zero_share] = 0
    return weights, values


def of(weights, values):
    shift = values[0] if len(values) else torch.zeros(values.shape[1:], dtype=F64)
    deviations = torch.where(weights > 0, values - shift, 0)
    return weighted_moments(weights, deviations, shift)


def assert_same(a, b, tolerance=1e-12):
    used = a.weight > 0
    torch.testing.assert_close(a.weight, b.weight, rtol=tolerance, atol=0)
    mean_a, mean_b = a.delta + (a.shift - b.shift), b.delta
    torch.testing.assert_close(mean_a[used], mean_b[used], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.m2, b.m2, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("offset", [0.0, 1e3, 5e5])
def test_definition(offset):
    weights, values = rows(7, 0, offset)
    result = of(weights, values)
    centred = values - offset
    mean = (weights * centred).sum(0) / weights.sum(0)
    torch.testing.assert_close(result.weight, weights.sum(0))
    torch.testing.assert_close(
        result.shift - offset + result.delta, mean, rtol=1e-11, atol=1e-15 * max(offset, 1) * 10
    )
    torch.testing.assert_close(
        result.m2, (weights * (centred - mean) ** 2).sum(0), rtol=1e-9, atol=0
    )


def test_all_weights_zero():
    weights, values = rows(4, 1)
    result = of(torch.zeros_like(weights), values)
    assert (result.weight == 0).all()
    assert (result.delta == 0).all()
    assert (result.m2 == 0).all()


@pytest.mark.parametrize("offset", [0.0, 5e5])
def test_merging_in_any_order_equals_one_pass(offset):
    weights, values = rows(9, 2, offset)
    parts = [of(weights[i : i + 3], values[i : i + 3]) for i in (0, 3, 6)]
    whole = of(weights, values)
    for a, b, c in itertools.permutations(parts):
        assert_same(merge(merge(a, b), c), whole, 1e-10)
        assert_same(merge(a, merge(b, c)), whole, 1e-10)


def test_merging_many_single_rows():
    weights, values = rows(50, 3, offset=1e3, zero_share=0.7)
    result = of(weights[:1], values[:1])
    for i in range(1, 50):
        result = merge(result, of(weights[i : i + 1], values[i : i + 1]))
    assert_same(result, of(weights, values), 1e-10)


def test_an_empty_side_is_neutral_even_if_its_shift_is_nan():
    weights, values = rows(5, 4, zero_share=0.0)
    full = of(weights, values)
    zeros = torch.zeros_like(full.weight)
    empty = Moments(zeros, torch.full_like(zeros, torch.nan), zeros, zeros)
    for merged in (merge(full, empty), merge(empty, full)):
        assert_same(merged, full)


def test_sum_of_squared_distances_is_the_double_sum():
    (a, y), (b, c) = rows(6, 5), rows(5, 6)
    a = (a > 0).to(F64)
    want = (a[:, None] * b[None] * (y[:, None] - c[None]) ** 2).sum((0, 1))
    torch.testing.assert_close(squared_distances(of(a, y), of(b, c)), want, rtol=1e-12, atol=1e-12)


def pair_arguments(n=4, m=5, s=6, e=3, seed=0, offset=0.0, dtype=F64):
    gen = torch.Generator().manual_seed(seed)

    def normal(count):
        return torch.randn(count, s, e, generator=gen, dtype=F64)

    y, x, mu = normal(n) + offset, normal(m) + offset, normal(m)
    own, stds = normal(n).abs() + 0.3, normal(m).abs() + 0.3
    mask_i = torch.rand(n, s, generator=gen) < 0.6
    mask_l = torch.rand(m, s, generator=gen) < 0.6
    eps_i, eps_l = torch.tensor(1e-3, dtype=F64), torch.tensor(2e-3, dtype=F64)
    y, own, x, mu, stds = (t.to(dtype) for t in (y, own, x, mu, stds))
    return [y, own, mask_i, eps_i, x, mu, stds, mask_l, eps_l]


def energies(function, arguments, exclude_diagonal=False):
    """``moments`` or ``pairs`` of samples and components, stacked to the rows of one batch."""
    y, own, mask_i, eps_i, x, mu, stds, mask_l, eps_l = arguments
    n, m = len(y), len(x)
    samples, components = (0, n), (n, n + m)

    def at(rows, tensor):
        padding = tensor.new_zeros(n if rows is components else m, *tensor.shape[1:])
        return torch.cat((padding, tensor) if rows is components else (tensor, padding))

    all_stds = torch.cat((torch.ones_like(y) if own is None else own, stds))
    masks = at(samples, mask_i), at(components, mask_l)
    mixture = Mixture(*masks, eps_l, eps_i, samples, components, exclude_diagonal)
    tensors = at(samples, y), at(components, x), at(components, mu), all_stds
    result = function(*tensors, mixture)
    return result[0]


@pytest.mark.parametrize("exclude_diagonal", [False, True])
@pytest.mark.parametrize("offset", [0.0, 5e5])
@pytest.mark.parametrize("own", [True, False])
def test_moments_are_the_sums_of_the_pairs(exclude_diagonal, offset, own):
    arguments = pair_arguments(n=5, m=5, offset=offset)
    if not own:
        arguments[1] = arguments[3] = None
    # Only the plain path leaves pairs (i, i) out where samples and components are different rows.
    with use_backend("reference"):
        sums = energies(moments, arguments, exclude_diagonal)
        matrices = energies(pairs, arguments, exclude_diagonal)
    keep = (
        ~torch.eye(5, dtype=torch.bool) if exclude_diagonal else torch.ones(5, 5, dtype=torch.bool)
    )
    for total, matrix in zip(sums, matrices, strict=True):
        scale = matrix[keep].abs().sum().item()
        assert total.shape == ()
        assert abs(total.item() - matrix[keep].sum().item()) <= 1e-11 * scale


def test_several_mixtures_of_one_batch_in_one_pass():
    y, own, mask, eps, x, mu, _, _, eps_l = pair_arguments(n=6, m=6, seed=1)
    mixtures = [
        Mixture(mask, mask, eps_l, eps, (0, 3), (3, 6)),
        Mixture(mask, mask, eps, eps_l, (3, 6), (0, 3)),
        Mixture(mask, mask, eps_l, eps, (1, 4), (2, 6)),
    ]
    together = moments(y, x, mu, own, *mixtures)
    assert len(together) == 3
    for sums, mixture in zip(together, mixtures, strict=True):
        (alone,) = moments(y, x, mu, own, mixture)
        assert all(torch.equal(a, b) for a, b in zip(sums, alone, strict=True))
    assert len({sums[0].item() for sums in together}) == 3


def test_each_sum_backpropagates_alone():
    arguments = pair_arguments(seed=3)
    for index in range(3):
        grads = []
        for function in (moments, pairs):
            fresh = [a.clone().requires_grad_(a.dim() == 3) for a in arguments]
            wanted = [a for a in fresh if a.requires_grad]
            total = energies(function, fresh)[index].sum()
            grads.append(
                torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
            )
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_more_positions_and_features_than_one_block_holds():
    arguments = pair_arguments(n=40, m=40, s=17, e=131, seed=4, dtype=torch.float32)
    results = []
    for function in (moments, pairs):
        fresh = [a.clone().requires_grad_(a.dim() == 3) for a in arguments]
        wanted = [a for a in fresh if a.requires_grad]
        q, g, k = (t.sum() for t in energies(function, fresh))
        results.append([q, g, k, *torch.autograd.grad(q + 2 * g - k, wanted)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())
    whole = pair_arguments(n=40, m=40, s=17, e=131, seed=4)
    y, x, mu, stds = (whole[i] for i in (0, 4, 5, 6))
    w = whole[2].to(F64), whole[7].to(F64)
    want = torch.zeros((), dtype=F64)
    for i in range(40):
        terms = ((y[i] - x - mu) ** 2 / (stds**2 + 2e-3)).sum(-1)
        want += (terms * w[0][i] * w[1]).sum() / 2
    assert results[0][0].item() == pytest.approx(want.item(), rel=1e-6)


@pairing
@pytest.mark.parametrize(
    ("change", "known"),
    [
        (lambda t: t, True),
        (lambda t: [t[0], t[1] * 1e-12, *t[2:]], False),  # 1 / v leaves the range
        (lambda t: [*map(_first, t[:2]), t[2], *map(_first, t[3:])], False),  # the shift is far
        (lambda t: [t[0], t[1], t[2], *(offset + 5e5 for offset in t[3:])], True),
        (lambda t: [t[0], _first(t[1]), t[2], *map(_others_far, t[3:])], True),  # as far as large
    ],
    ids=["ordinary", "narrow stds", "a far row", "an offset", "a light row at the origin"],
)
def test_plain_torch_goes_to_float64_where_float32_is_not_enough(pairing, change, known):
    exact = mi_inputs(b=12, s=5, e=7, dtype=F32, seed=3)
    exact[2][:, 1] = False
    exact = change(exact)
    inputs = [t.clone().requires_grad_(t.is_floating_point()) for t in exact]
    embeddings = [inputs[i].detach() for i in (4, 3, 0, 1)]
    scoring = scoring_of(exact[2], pairing)
    with use_backend("reference"):
        _, _, state = estimators.jensen(embeddings, scoring)
        found = mi(inputs, pairing=pairing)
        found.backward()
    if pairing != "leave_one_out":  # always in float64
        assert moments_in(state, scoring, embeddings).isfinite().all() == known
    wide = [t.double() if t.is_floating_point() else t for t in exact]
    wide = [t.requires_grad_(t.is_floating_point()) for t in wide]
    eps = torch.finfo(F32).eps / torch.finfo(F64).eps
    with use_backend("reference"):
        value = mi(wide, pairing=pairing, safety_factor=100.0 * eps)
    value.backward()
    torch.testing.assert_close(found.double(), value, rtol=2e-6, atol=0)
    for i in (0, 1, 3, 4):
        size = wide[i].grad.abs().amax()
        torch.testing.assert_close(inputs[i].grad / size, wide[i].grad / size, rtol=1e-5,
                                   atol=1e-5, check_dtype=False)  # fmt: skip


def _others_far(values):
    """All rows but the first of each half."""
    values = values + 1e3
    values[:: len(values) // 2] -= 1e3
    return values


def _first(values):
    """The first row of each half on a scale of its own."""
    values = values.clone()
    values[:: len(values) // 2] *= 1e4
    return values
