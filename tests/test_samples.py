"""Energies of each sample without pairs: against the means of its pairs, which share no formula."""

import pytest
import torch
from cases import assert_same_bits, mi_inputs, mixtures
from fused_mi._mixture import Mixture
from fused_mi.reference import pairs, streaming
from fused_mi.reference.samples import (
    _blocks,
    energies,
    merge_moments,
    merge_sums,
    of_others,
    samples,
    samples_backward,
)
from marks import dtypes, pairing
from oracle import LOG_2PI
from test_blocks_of_pairs import Largest

F32, F64 = torch.float32, torch.float64
TIGHT = 1e-12  # of the sum of |terms|
BATCHES = 2, 3, 8, 65
ROWS = {"first": lambda b: 0, "middle": lambda b: b // 2, "last": lambda b: b - 1}

every_batch = pytest.mark.parametrize("b", BATCHES)
which_row = pytest.mark.parametrize("row", ROWS)


class _Samples(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mixture, *inputs):
        ctx.mixture = mixture
        ctx.save_for_backward(*inputs)
        return samples(*inputs, [mixture])[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        wanted = ctx.needs_input_grad[1:]
        return None, *samples_backward(upstream[None], *ctx.saved_tensors, [ctx.mixture], wanted)


jensen_of_samples = _Samples.apply
FUNCTIONS = {"samples": jensen_of_samples, "formula": energies}


def rows_of(b, s=4, e=5, dtype=F64, seed=0, offset=0.0, change=None):
    """y, x, mu, stds, which `change` has had in float64, and a mask."""
    mu, stds, mask, x, y = mi_inputs(b, s, e, seed=seed, offset=offset, device="cpu")
    if change:
        change(y, x, mu, stds)
    return [t.to(dtype) for t in (y, x, mu, stds)], mask


def masks_of(kind, mask):
    """Of samples and of components."""
    if kind == "none active":
        return torch.zeros_like(mask), torch.zeros_like(mask)
    if kind == "disjoint":
        even = (torch.arange(mask.shape[1]) % 2 == 0).expand_as(mask)
        return mask & even, ~even
    return mask, mask if kind == "combined" else torch.ones_like(mask)


def upstream_of(mixture):
    return torch.randn(3, mixture.samples, dtype=F64)


def met(mixture):
    """The pairs (N, M) there are, and how many a sample has."""
    found = torch.ones(mixture.samples, mixture.components, dtype=torch.bool)
    if mixture.exclude_diagonal:
        found.fill_diagonal_(False)
    return found, max(mixture.components - mixture.exclude_diagonal, 1)


def by_pairs(mixture, *inputs):
    there, partners = met(mixture)
    return torch.where(there, pairs.energies(mixture, *inputs), 0).sum(-1) / partners


def evaluate(function, mixture, inputs, upstream, dtype=None, **options):
    """The value, and the gradients of y, x, mu and stds."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    value = function(mixture, *leaves)
    grads = torch.autograd.grad(value, leaves, upstream, **options)
    return [t.detach() for t in (value, *grads)]


def sizes(mixture, inputs, upstream):
    """sum |terms| of what `evaluate` returns."""
    y, x, mu, stds = (t.double() for t in inputs)
    i, j = slice(*mixture.sample_rows), slice(*mixture.component_rows)
    there, partners = met(mixture)
    of_samples, of_components = mixture.contributing()
    weight = (of_samples[:, None] & of_components & there[..., None])[..., None]
    v_l, v_i = stds[j].square() + mixture.component_eps, torch.ones_like(y[i])
    if mixture.sample_eps is not None:
        v_i = stds[i].square() + mixture.sample_eps

    def total(terms, *dims):
        return torch.where(weight, terms, 0).sum(dims) / partners

    u_q, u_g, u_k = upstream.abs()[..., None, None, None]
    distance = (y[i][:, None] - x[j] - mu[j]).abs()
    squares, pull = distance.square() / v_l, distance / v_l
    logs = [(v.log() + LOG_2PI).abs() for v in (v_l.expand_as(pull), v_i[:, None])]
    value = torch.stack([total(terms, 1, 2, 3) / 2 for terms in (squares, *logs)])
    d_y, d_c, d_stds = (torch.zeros_like(t) for t in (y, x, stds))
    d_y[i] = total(u_q * pull, 1)
    d_c[j] = total(u_q * pull, 0)
    d_stds[j] = total(u_q * squares + u_g, 0) * stds[j].abs() / v_l
    if mixture.sample_eps is not None:
        d_stds[i] += total(u_k, 1) * stds[i].abs() / v_i
    return [value, d_y, d_c, d_c, d_stds]


def assert_right(mixture, inputs, tolerance=TIGHT, upstream=None):
    """Value and gradients of the numbers that the inputs are, before gradients are rounded."""
    upstream = upstream_of(mixture) if upstream is None else upstream
    found = evaluate(jensen_of_samples, mixture, inputs, upstream, F64)
    found[0] = jensen_of_samples(mixture, *inputs)  # as what they are
    want = evaluate(by_pairs, mixture, inputs, upstream, F64)
    assert found[0].dtype == F64
    everything = zip(found, want, sizes(mixture, inputs, upstream), strict=True)
    for number, (a, b, size) in enumerate(everything):
        excess = ((a - b).abs() - tolerance * size).max().item()
        assert excess <= 0, (number, excess)


@pytest.mark.parametrize("masks", ["combined", "not combined", "none active", "disjoint"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 5e5])
@pytest.mark.parametrize("own", [True, False])
@pairing
@dtypes(F64, F32)
def test_means_of_the_pairs(masks, offset, own, pairing, dtype):
    inputs, mask = rows_of(9, dtype=dtype, seed=1, offset=offset)
    for mixture in mixtures(pairing, *masks_of(masks, mask)):
        if not own:
            mixture = mixture._replace(sample_eps=None)
        found = jensen_of_samples(mixture, *inputs)
        assert found.shape == (3, mixture.samples)
        assert (found[2] != 0).any() == (own and "combined" in masks)
        assert_right(mixture, inputs)


@every_batch
@pytest.mark.parametrize("ratio", [1e-4, 1e2, 1e4])
@which_row
@pytest.mark.parametrize("sample", ["moves along", "stays"])
@pytest.mark.parametrize("pairing", ["leave_one_out", "sub_batch"])
@dtypes(F64, F32)
def test_one_sigma_beside_the_others(b, ratio, row, sample, pairing, dtype):
    def change(y, x, mu, stds):
        i = ROWS[row](b)
        noise = (y[i] - x[i] - mu[i]) * ratio
        stds[i] *= ratio
        if sample == "moves along":
            y[i] = x[i] + mu[i] + noise

    inputs, mask = rows_of(b, dtype=dtype, seed=b, change=change)
    for mixture in mixtures(pairing, mask, eps=1e-12):
        assert_right(mixture, inputs)


@pytest.mark.parametrize("b", BATCHES[1:])
@which_row
@pytest.mark.parametrize("far", ["x", "y", "x and y"])
@pytest.mark.parametrize("pairing", ["leave_one_out", "sub_batch"])
def test_one_row_far_from_the_others(b, row, far, pairing):
    """A component's gradient has terms of its own: the square of the distance from the mean of all
    components would leave it 1e-8."""

    def change(y, x, mu, stds):
        x[ROWS[row](b)] += 1e4 * ("x" in far)
        y[ROWS[row](b)] += 1e4 * ("y" in far)

    inputs, mask = rows_of(b, dtype=F32, seed=b, change=change)
    for mixture in mixtures(pairing, mask):
        assert_right(mixture, inputs, 1e-10)


def test_one_sample_of_two_clusters():
    """Its own pull on the near components, with nothing else in the sum."""

    def change(y, x, mu, stds):
        x[::2] += 1e4
        y[::2] += 1e4

    inputs, mask = rows_of(16, dtype=F32, change=change)
    upstream = torch.zeros(3, 16, dtype=F64)
    upstream[:, 4] = -1
    (mixture,) = mixtures("leave_one_out", mask)
    assert_right(mixture, inputs, 1e-11, upstream)


@pytest.mark.parametrize("offset_of_mu", [1e3, 5e5])
@pairing
def test_an_offset_of_the_means(offset_of_mu, pairing):
    def change(y, x, mu, stds):
        y += offset_of_mu
        mu += offset_of_mu

    inputs, mask = rows_of(9, dtype=F32, seed=2, change=change)
    for mixture in mixtures(pairing, mask):
        assert_right(mixture, inputs)


@pairing
@dtypes(F64, F32)
def test_wide_rows_far_away_take_no_digits(pairing, dtype):
    """They are the first of each half, and nothing is relative to them."""

    def change(y, x, mu, stds):
        x[::4] += 1e8
        stds[::4] *= 1e8

    inputs, mask = rows_of(8, dtype=dtype, seed=13, change=change)
    for mixture in mixtures(pairing, mask):
        assert_right(mixture, inputs)


@pytest.mark.parametrize("unit", [2.0**-530, 2.0**530])
@pairing
def test_no_unit_matters(unit, pairing):
    """Not where squares leave the range either."""
    inputs, mask = rows_of(9, seed=14)
    for mixture in mixtures(pairing, mask, eps=0.0):
        upstream = upstream_of(mixture)
        found, want = (
            evaluate(jensen_of_samples, mixture, [t * u for t in inputs], upstream)
            for u in (unit, 1.0)
        )
        assert torch.equal(found[0][0], want[0][0])
        for a, b in zip(found[1:], want[1:], strict=True):
            assert (a * unit - b).abs().max() <= 1e-14 * b.abs().max()


@pytest.mark.parametrize("index", [0, 1, 2, 3, "upstream"])
@pairing
def test_nan_reaches_what_meets_it(index, pairing):
    inputs, mask = rows_of(9, seed=15)
    mask[::2, 1] = True
    mask[1::2, 1] = False
    spoiled = [t.clone() for t in inputs]
    if index != "upstream":
        spoiled[index][::2, 1] = torch.nan
    for mixture in mixtures(pairing, mask):
        upstream = upstream_of(mixture)
        if index == "upstream":
            upstream[:] = torch.nan
        found, again = (
            evaluate(jensen_of_samples, mixture, t, upstream) for t in (inputs, spoiled)
        )
        meets = mixture.contributing()[0][:, 1]
        assert again[0][:, meets].isnan().any(0).all() == (index != "upstream")
        assert_same_bits([again[0][:, ~meets]], [found[0][:, ~meets]])
        assert any(grad[:, 1].isnan().any() for grad in again[1:])
        assert all((grad[~mask] == 0).all() for grad in again[1:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("function", ["samples", "formula"])
@pairing
@dtypes(F64, F32)
def test_what_no_pair_uses_changes_no_bit(value, function, pairing, dtype):
    inputs, mask = rows_of(8, dtype=dtype, seed=3)
    mask[:, 1] = False
    mask[5, 1] = True  # alone there
    spoiled = [t.clone() for t in inputs]
    unused = ~mask
    unused[5, 1] = True
    for t in spoiled:
        t[unused] = value
    for mixture in mixtures(pairing, mask):
        upstream = upstream_of(mixture)
        found, again = (
            evaluate(FUNCTIONS[function], mixture, given, upstream) for given in (inputs, spoiled)
        )
        assert_same_bits(again, found)
        assert all((grad[unused] == 0).all() for grad in again[1:])
        assert all((grad != 0).any() for grad in again[1:])


@pairing
def test_gradients_of_both_orders(pairing):
    inputs, mask = rows_of(4, 2, 2, seed=4)
    mask[0, 1] = True
    mask[1, 1] = False
    for mixture in mixtures(pairing, mask):
        leaves = [t.requires_grad_() for t in inputs]
        assert torch.autograd.gradcheck(lambda *t, m=mixture: energies(m, *t), leaves)
        assert torch.autograd.gradgradcheck(lambda *t, m=mixture: energies(m, *t), leaves)


@pairing
@dtypes(F64, F32)
def test_blocks_give_what_the_whole_gives(monkeypatch, pairing, dtype):
    inputs, mask = rows_of(7, 5, 130, dtype=dtype, seed=8)
    for mixture in mixtures(pairing, mask):
        upstream = upstream_of(mixture)
        whole = evaluate(jensen_of_samples, mixture, inputs, upstream)
        assert len(_blocks(mixture, *inputs[:2])) == 1
        with monkeypatch.context() as patch:
            patch.setitem(streaming._BLOCK_ELEMENTS, "cpu", 1)
            assert len(_blocks(mixture, *inputs[:2])) == 5 * 3
            streamed = evaluate(jensen_of_samples, mixture, inputs, upstream)
        for a, b in zip(streamed, whole, strict=True):
            assert (a - b).abs().max() <= 4 * torch.finfo(b.dtype).eps * b.abs().max()


@pytest.mark.parametrize("pairing", ["leave_one_out", "all"])
def test_no_tensor_has_all_pairs(pairing):
    """Some samples and some components against all others; the whole takes a second."""
    b, chosen = 20000, (0, 1, 7777, 19999)
    inputs, mask = rows_of(b, 1, 4, dtype=F32, seed=9)
    mask = torch.rand(b, 1) < 0.9
    mask[list(chosen)] = True
    eps = torch.tensor(1e-3, dtype=F64)
    loo = pairing == "leave_one_out"
    mixture = Mixture(mask, mask, eps, None, (0, b), (0, b), loo)
    upstream = upstream_of(mixture)
    with Largest() as largest:
        value, d_y, d_x, _, d_stds = evaluate(
            jensen_of_samples, mixture, inputs, upstream, dtype=F64
        )
    assert largest.elements <= 3 * 2 * 4 * b  # rows, signs, features: no more than a few of them
    partners = b - loo
    for i in chosen:
        there = torch.ones(b, dtype=torch.bool)
        there[i] = not loo
        as_sample = mixture._replace(sample_rows=(i, i + 1), exclude_diagonal=False)
        as_component = mixture._replace(component_rows=(i, i + 1), exclude_diagonal=False)

        def mean(m, *tensors, there=there):
            return pairs.energies(m, *tensors)[:, 0, there].mean(-1)

        def column(m, *tensors, there=there):
            return (pairs.energies(m, *tensors)[..., 0] * there).div(partners)

        want, of_y, *_ = evaluate(mean, as_sample, inputs, upstream[:, i], F64)
        _, _, of_x, _, of_stds = evaluate(column, as_component, inputs, upstream, F64)
        torch.testing.assert_close(value[:, i], want, rtol=1e-12, atol=0)
        for found, expected in ((d_y, of_y), (d_x, of_x), (d_stds, of_stds)):
            torch.testing.assert_close(found[i], expected[i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pairing", ["leave_one_out", "sub_batch"])
@pytest.mark.parametrize("where", ["all", "one", "half"])
@pytest.mark.parametrize(
    ("dtype", "sigma"),
    [(F32, s) for s in (0.0, 1e-20, 1e20, 1e-40, -1e-20, 3e38)] + [(F64, 1e-140), (F64, 1e140)],
)
def test_extreme_sigma(pairing, where, dtype, sigma):
    def change(y, x, mu, stds):
        at = {"all": ..., "one": (4, 0, 1), "half": slice(0, 4)}[where]
        stds[at] = sigma

    inputs, mask = rows_of(8, dtype=dtype, seed=10, change=change)
    eps = torch.tensor(1e-60 if dtype == F32 else 1e-300, dtype=F64)
    mixture = mixtures(pairing, mask)[0]._replace(component_eps=eps, sample_eps=eps)
    upstream = upstream_of(mixture)
    found = evaluate(jensen_of_samples, mixture, inputs, upstream)
    want = evaluate(by_pairs, mixture, inputs, upstream, F64)
    assert found[0].isfinite().all()
    assert ((found[0] - want[0]).abs() <= TIGHT * sizes(mixture, inputs, upstream)[0]).all()
    for a, b, t in zip(found[1:], want[1:], inputs, strict=True):
        assert not a.isnan().any()
        known = ~b.isnan()  # pair by pair, infinities may meet
        rtol = 64 * torch.finfo(dtype).eps if dtype == F32 else 1e-9
        torch.testing.assert_close(a[known], b.to(t.dtype)[known], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("value", [1e200, torch.inf])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("pairing", ["leave_one_out", "sub_batch"])
def test_what_is_too_far_is_infinite_and_not_nan(value, index, pairing):
    inputs, mask = rows_of(8, seed=11)
    row = 1 if index == 0 else 6
    inputs[index][row, 0, 0] = value
    mixture = mixtures(pairing, mask)[0]
    found = jensen_of_samples(mixture, *inputs)
    # Position 0 is active everywhere: the sample, or all that meet the component.
    far = torch.arange(mixture.samples) == row
    assert torch.equal(found[0].isinf(), far if index == 0 else ~far)
    assert not found.isnan().any()


@pairing
@pytest.mark.parametrize(
    "chosen", [(torch.float16, torch.bfloat16, F32, F64), (F32, F32, torch.float16, torch.bfloat16)]
)
def test_every_dtype_and_stride(pairing, chosen):
    inputs, mask = rows_of(6, seed=12)
    mixed = [t.to(dtype) for t, dtype in zip(inputs, chosen, strict=True)]
    expanded = [t[:1, :, :1].expand(6, 4, 5) for t in mixed]
    for mixture in mixtures(pairing, mask):
        upstream = upstream_of(mixture)
        found = evaluate(jensen_of_samples, mixture, mixed, upstream)
        assert [t.dtype for t in found] == [F64, *chosen]
        want = evaluate(by_pairs, mixture, mixed, upstream, F64)
        for a, b in zip(found, want, strict=True):
            once = torch.finfo(a.dtype).eps / 2 * b.abs() + torch.finfo(a.dtype).tiny
            assert ((a - b).abs() <= once + 1e-13 * b.abs().max()).all()  # rounded once
        strides = evaluate(jensen_of_samples, mixture, expanded, upstream)
        dense = [t.contiguous() for t in expanded]
        assert_same_bits(strides, evaluate(jensen_of_samples, mixture, dense, upstream))


@pairing
@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 2, 0), (0, 2, 3), (1, 2, 3), (2, 2, 3)])
def test_few_or_no_elements(pairing, shape):
    inputs = [torch.rand(shape, dtype=F64).requires_grad_() for _ in range(4)]
    for mixture in mixtures(pairing, torch.ones(shape[:2], dtype=torch.bool)):
        value = jensen_of_samples(mixture, *inputs)
        assert value.shape == (3, mixture.samples)
        grads = torch.autograd.grad(value.sum(), inputs)
        assert [g.shape for g in grads] == [shape] * 4
        some = shape == (2, 2, 3)
        assert (value != 0).all() == (some or value.numel() == 0)
        assert any((g != 0).any() for g in grads) == some


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 13])
def test_moments_of_all_other_rows(count):
    weights = torch.rand(count, 2, dtype=F64)
    weights[:, 1] *= torch.rand(count) < 0.5
    weights[count // 2 :][:1] = 1e20  # a difference would have nothing left of the others
    values = torch.randn(count, 2, dtype=F64)
    zeros = torch.zeros_like(values)
    found = of_others((weights, values, zeros), merge_moments)
    (total,) = of_others((weights,), merge_sums)
    assert all(t.shape == (count, 2) for t in found)
    for i in range(count):
        w, r = (torch.cat((t[:i], t[i + 1 :])) for t in (weights, values))
        weight = w.sum(0)
        shares = w / torch.where(weight > 0, weight, 1)
        m2 = (w[:, None] * shares * (r[:, None] - r).square()).sum((0, 1)) / 2
        want = weight, (shares * r).sum(0), m2
        torch.testing.assert_close(total[i], weight, rtol=1e-14, atol=0)
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=0)
