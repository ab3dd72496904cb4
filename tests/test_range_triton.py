"""The Triton kernels over the whole range of float32 and float64, against the pair formula in 50
digits: values and gradients are exact where they fit the type, else infinite, and never NaN."""

import itertools
import math

import mpmath
import pytest
import torch
from cases import (
    ESTIMATORS,
    FLOATING,
    PAIRINGS,
    evaluate,
    mi,
    mi_inputs,
    mixtures,
    same_bits,
    value_and_gradients,
)
from fused_mi import use_backend
from fused_mi.reference import pairs as reference_pairs
from fused_mi.triton_kernels import moments
from rules import assert_rule10

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
F32, F64 = torch.float32, torch.float64
DECADES = {F32: range(-45, 39), F64: range(-300, 309, 10)}
# Beside the ends of the range, where squares and their inverses leave it, and where kernels change.
SCALES = {F32: (-45, -23, -13, -10, 12, 14, 22), F64: (-300, -160, 160, 300)}
dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=str)
estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
pairing = pytest.mark.parametrize("pairing", PAIRINGS)


@pytest.fixture(autouse=True)
def _forced():
    with use_backend("triton"), mpmath.workdps(50):
        yield


def numbers(tensor):
    """Exact, by row, features of all positions in one."""
    return [[mpmath.mpf(v) for v in row] for row in tensor.flatten(1).tolist()]


def stabiliser(sigma, factor, dtype):
    """eps in `dtype`, as it is defined, within the positive numbers of the type."""
    info = torch.finfo(dtype)
    squares = sigma.square()
    squares = squares[(squares > 0) & squares.isfinite()]
    least = squares.min().item() if squares.numel() else 1.0
    eps = min(max(factor * info.eps * least, info.tiny * info.eps), info.max)
    return mpmath.mpf(torch.tensor(eps, dtype=dtype).item() if factor else 0)


def directions(pairing, B):
    """The pairs (i, l) of each direction, by sample."""
    half = B // 2
    first, second = range(half), range(half, B)
    cut = {"sub_batch": [(first, second)], "symmetric": [(first, second), (second, first)]}
    if pairing == "leave_one_out":
        return [{i: [m for m in range(B) if m != i] for i in range(B)}]
    return [{i: list(components) for i in samples} for samples, components in cut[pairing]]


class Sum:
    """A number and the sum of the magnitudes of its terms."""

    def __init__(self):
        self.total, self.size = mpmath.mpf(0), mpmath.mpf(0)

    def add(self, term, size=None):
        self.total += term
        self.size += abs(term) if size is None else size


def formula(inputs, estimator, pairing, factor):
    """Value and gradients by (mu, sigma, x, y), each a `Sum`, of the loss over all pairs."""
    dtype = inputs[0].dtype
    mu, sigma, x, y = (numbers(inputs[i]) for i in (0, 1, 3, 4))
    B, E = len(mu), len(mu[0])
    parts = directions(pairing, B)
    value = Sum()
    of = [[[Sum() for _ in range(E)] for _ in range(B)] for _ in range(4)]
    for partners in parts:
        scale = mpmath.mpf(1) / len(parts)
        rows_l = sorted(set(itertools.chain(*partners.values())))
        eps_i, eps_l = (
            stabiliser(inputs[1][list(rows)], factor, dtype) for rows in (partners, rows_l)
        )
        for i, components in partners.items():
            v_i = [s * s + eps_i for s in sigma[i]]
            energies, sizes = [], []
            for m in components:
                v = [s * s + eps_l for s in sigma[m]]
                terms = [(y[i][e] - x[m][e] - mu[m][e]) ** 2 / v[e] / 2 for e in range(E)]
                logs = [(mpmath.log(v[e]), mpmath.log(v_i[e])) for e in range(E)]
                energies.append(sum(terms) + sum(a - b for a, b in logs) / 2)
                constants = 2 * mpmath.log(2 * mpmath.pi)
                sizes.append(sum(terms) + sum(abs(a) + abs(b) + constants for a, b in logs) / 2)
            M = len(components)
            least = min(energies)
            weights = [mpmath.exp(least - e) for e in energies]
            total = sum(weights)
            if estimator == "jensen":
                r, spread = [mpmath.mpf(1) / M] * M, [mpmath.mpf(1)] * M
                value.add(scale * sum(energies) / M, scale * sum(sizes) / M)
            else:
                r = [w / total for w in weights]
                mean = sum(a * b for a, b in zip(r, sizes, strict=True))
                spread = [1 + size + mean for size in sizes]
                value.add(scale * (least - mpmath.log(total / M)), scale * (1 + mean))
            for m, weight, more in zip(components, r, spread, strict=True):
                for e in range(E):
                    v, d = sigma[m][e] ** 2 + eps_l, y[i][e] - x[m][e] - mu[m][e]
                    size = abs(y[i][e]) + abs(x[m][e]) + abs(mu[m][e])
                    pull, largest = scale * weight * d / v, scale * weight * more * size / v
                    of[3][i][e].add(pull, largest)
                    of[2][m][e].add(-pull, largest)
                    of[0][m][e].add(-pull, largest)
                    slope, z = scale * weight * sigma[m][e] / v, d * d / v
                    of[1][m][e].add(slope * (1 - z), abs(slope) * more * (1 + z))
                    own = scale * weight * sigma[i][e] / v_i[e]
                    of[1][i][e].add(-own, abs(own) * more)
    return value, of


def close(what, ours, exact, dtype):
    """Within 8 eps of the sum of the magnitudes; infinite where the exact one exceeds the type."""
    info = torch.finfo(dtype)
    assert not math.isnan(ours), what
    error = 8 * info.eps * exact.size + info.tiny
    if math.isinf(ours):
        assert abs(exact.total) + error > info.max and ours * exact.total >= 0, what
    else:
        difference = abs(mpmath.mpf(ours) - exact.total)
        assert difference <= error, f"{what}: {ours}, exact {mpmath.nstr(exact.total, 17)}"


def assert_exact(inputs, estimator, pairing, factor):
    leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
    value = mi(leaves, estimator=estimator, pairing=pairing, safety_factor=factor)
    value.backward()
    exact, of = formula(inputs, estimator, pairing, factor)
    dtype = inputs[0].dtype
    close("value", value.item(), exact, dtype)
    assert not any(leaves[i].grad.isnan().any() for i in (0, 1, 3, 4))
    for name, i, gradient in zip(("mu", "sigma", "x", "y"), (0, 1, 3, 4), of, strict=True):
        found = leaves[i].grad.flatten(1).tolist()
        for row, (ours, true) in enumerate(zip(found, gradient, strict=True)):
            for e, number in enumerate(ours):
                close(f"{name}[{row}, {e}]", number, true[e], dtype)


def like(scales, dtype, spread=0.0):
    """mu = x = y = sigma = `scales` (rows, features), but for a factor up to 1 + `spread`."""
    sigma = torch.tensor(scales, dtype=F64)[:, None]
    generator = torch.Generator().manual_seed(0)

    def scaled():
        factor = 1 + spread * torch.rand(sigma.shape, generator=generator, dtype=F64)
        return (sigma * factor).to(dtype)

    mask = torch.ones(sigma.shape[:2], dtype=torch.bool)
    return [scaled(), scaled(), mask, scaled(), scaled()]


@dtype
@pairing
@estimator
def test_every_decade_in_one_call(dtype, estimator, pairing):
    """Without a stabiliser, which would tie them together."""
    scales = [10.0**k for k in DECADES[dtype]]
    assert_exact(like([scales] * 2, dtype), estimator, pairing, 0.0)


@dtype
@pytest.mark.parametrize("factor", [0.0, 100.0])
@pytest.mark.parametrize(
    ("estimator", "pairing"), [("jensen", "sub_batch"), ("logsumexp", "leave_one_out")]
)
def test_one_scale_of_a_call(dtype, estimator, pairing, factor):
    for k in SCALES[dtype]:
        assert_exact(like([[10.0**k]] * 2, dtype), estimator, pairing, factor)


@pytest.mark.parametrize("pairing", ["sub_batch", "leave_one_out"])
@estimator
@pytest.mark.parametrize(
    ("dtype", "exponents"), [(F32, (-13, 14, 0, 3)), (F32, (22, 15) * 2), (F64, (160, 158) * 2)]
)
def test_mixed_scales(dtype, exponents, estimator, pairing):
    """Of the rows, and of the features of a row."""
    rows = like([[10.0**k] * 2 for k in exponents], dtype, 1.0)
    assert_exact(rows, estimator, pairing, 100.0)
    features = like([[10.0**k for k in exponents]] * 4, dtype, 1.0)
    assert_exact(features, estimator, pairing, 100.0)


MIXED: list[tuple[int, ...]] = [(8, -8, 0, 3), (-8, 8, 3, 0), (4, 0, -2, 1), (6, -6, 6, -6)]
MIXED += [(2, 0, 1, -1), (0, 0, 5, 5), (5, 5, 0, 0), (1, 0, 0, 1, 0, 1), (-3, 0, 3, 0, -3, 3)]


@dtype
@estimator
@pairing
@pytest.mark.parametrize("exponents", MIXED)
def test_rows_of_other_scales_within_the_range(dtype, estimator, pairing, exponents):
    """Where a first row of another scale would take the digits of all others, and where one row is
    nearly all of a sum that it is taken from."""
    assert_exact(like([[10.0**k] * 2 for k in exponents], dtype, 1.0), estimator, pairing, 100.0)


@pairing
def test_opposite_gradients_beyond_the_range_are_no_nan(pairing):
    """Of components on both sides of a sample."""
    inputs = like([[1.0]] * 6, F64, 1.0)
    inputs[1].mul_(1e-160)
    inputs[3][:, 0, 0] = torch.tensor([1.0, -1.0, 3.0, -1.0, 1.0, -3.0])
    inputs[4].mul_(0.1)
    assert_exact(inputs, "jensen", pairing, 100.0)


@estimator
def test_a_stabiliser_beyond_the_range_is_the_largest_number(estimator):
    assert_exact(like([[1.0, 2.0]] * 2, F32, 1.0), estimator, "symmetric", 1e300)


@dtype
@pytest.mark.parametrize("pairing", ["sub_batch", "leave_one_out"])
@pytest.mark.parametrize("which", [3, 4], ids=["x", "y"])
@pytest.mark.parametrize("row", [0, 2])
def test_an_infinite_row(dtype, pairing, which, row):
    """Wherever it is, the first row, which is the shift, included."""
    inputs = like([[1.0, 2.0]] * 4, dtype, 1.0)
    inputs[which][row, 0, 0] = math.inf
    value = mi(inputs, pairing=pairing)
    used = pairing != "sub_batch" or (row < 2) == (which == 4)
    assert value.item() == math.inf if used else math.isfinite(value)
    alone = mi(inputs, pairing=pairing, estimator="logsumexp")
    again = mi([t[[1, 0, 3, 2]] for t in inputs], pairing=pairing, estimator="logsumexp")
    assert not alone.isnan()
    torch.testing.assert_close(alone, again)


def _gradients_of_pairs(upstream, inputs, given):
    """By the formula, sample by sample: a pair that is left out is not there."""
    total = [torch.zeros_like(t) for t in inputs]
    for of_sums, mixture in zip(upstream, given, strict=True):
        for i in range(*mixture.sample_rows):
            for m in range(*mixture.component_rows):
                if i == m and mixture.exclude_diagonal:
                    continue
                pair = mixture._replace(
                    sample_rows=(i, i + 1), component_rows=(m, m + 1), exclude_diagonal=False
                )
                found = reference_pairs.pairs_backward(
                    of_sums[None, :, None, None], *inputs, None, [pair], [True] * 4
                )
                total = [a + b for a, b in zip(total, found, strict=True)]
    return total


@dtype
@pairing
@pytest.mark.parametrize("what", ["y", "x", "mu", "sigma"])
@pytest.mark.parametrize("row", [0, 2])
def test_gradients_of_an_infinite_row(dtype, pairing, what, row):
    """Those of the pairs, as IEEE arithmetic has them."""
    mu, sigma, mask, x, y = (t.expand(4, 2, *t.shape[2:]) for t in like([[1.0, 2.0]] * 4, dtype, 1))
    inputs = {"y": y.clone(), "x": x.clone(), "mu": mu.clone(), "sigma": sigma.clone()}
    inputs[what][row, 1, 0] = math.inf
    given = mixtures(pairing, mask)
    upstream = torch.tensor([0.5, 2.0, -1.0], dtype=F64).expand(len(given), 3)
    _, state = moments.moments(*inputs.values(), given)
    ours = moments.moments_backward(upstream, *inputs.values(), state, given, [True] * 4)
    exact = _gradients_of_pairs(upstream, list(inputs.values()), given)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pairing
def test_a_lost_column_leaves_the_others_alone(pairing):
    inputs = mi_inputs(b=6, s=3, e=5, dtype=F32, seed=1)
    usual, gradients = value_and_gradients(lambda t: mi(t, pairing=pairing), inputs)
    inputs[3][3, 0, 2] = 1e30
    value, others = value_and_gradients(lambda t: mi(t, pairing=pairing), inputs)
    assert value > usual
    kept = torch.ones(3, 5, dtype=torch.bool)
    kept[0, 2] = False
    for a, b in zip(gradients, others, strict=True):
        assert same_bits(a[:, kept], b[:, kept]) and not torch.equal(a, b)


@pairing
@pytest.mark.parametrize("combine", [True, False])
def test_lost_columns_of_strided_inputs_and_masks(pairing, combine):
    """Rows of another scale, and NaN where nothing is active."""
    inputs = mi_inputs(b=11 - (pairing != "leave_one_out"), s=4, e=17, dtype=F32, seed=2)
    inputs[2][:, 3] = False
    for i in FLOATING:
        inputs[i][1, 1:] *= 1e-6
        inputs[i][6, 1:] *= 1e6
    options = {"pairing": pairing, "combine": combine}
    assert_rule10(lambda t: mi(t, combine, pairing=pairing), inputs, options)
    plain, gradients = value_and_gradients(lambda t: mi(t, combine, pairing=pairing), inputs)

    def strided(tensors):
        turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
        return mi(turned, combine, pairing=pairing)

    if combine:
        for i in FLOATING:
            inputs[i][:, 3] = math.nan
    again, others = value_and_gradients(strided, inputs)
    assert same_bits(plain, again)
    assert all(same_bits(a, b) for a, b in zip(gradients, others, strict=True))


@dtype
@estimator
def test_nan_gives_nan_where_it_is_active(dtype, estimator):
    inputs = [t.expand(4, 2, *t.shape[2:]).clone() for t in like([[1.0, 2.0]] * 4, dtype, 1.0)]
    inputs[1][3, 1] = math.nan
    assert mi(inputs, estimator=estimator).isnan()
    inputs[2][3, 1] = False
    assert mi(inputs, estimator=estimator).isfinite()


def test_a_column_lost_in_one_direction_alone_has_no_gradient_in_the_other():
    """Masks not combined, and no sample of the second half at a position: there the first half are
    components of nobody, whatever their x, in a column that goes by pairs as samples."""
    found = []
    for unused in (0.0, math.nan):
        means, stds, mask, clean, noisy = mi_inputs(b=6, s=2, e=3, dtype=F32, seed=9)
        stds[:, 0, 1] *= 1e-13
        stds[0, 0, 1] = stds[4, 0, 1] = 1e14
        mask[:], mask[3:, 0] = True, False
        means[:3, 0], clean[:3, 0], noisy[3:, 0] = unused, unused, unused
        inputs = means, stds, mask, clean, noisy
        found.append(evaluate(lambda t: mi(t, combine=False, pairing="symmetric"), inputs))
    for plain, ours in zip(*found, strict=True):
        assert not plain.isnan().any() and same_bits(plain, ours)
