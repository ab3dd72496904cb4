"""Bounds of the information of a batch that is all there is."""

import math

import fused_mi
import pytest
import torch
from cases import DEVICE, assert_same_bits, gradients, leaves, mi_inputs
from marks import dtypes
from oracle import eps_of
from test_scaling import Allocations

pytestmark = pytest.mark.every_device  # plain torch
BOUNDS = ("upper", "lower")
every_bound = pytest.mark.parametrize("bound", BOUNDS)
reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
F32, F64 = torch.float32, torch.float64
ACTIVE = [0, 2, 3]


def case(m=6, s=4, e=3, dtype=F64, seed=0, offset=0.0):
    """(mu, sigma, x), and the mask (S,) of the positions in ACTIVE."""
    mu, stds, _, x, _ = mi_inputs(m, s, e, dtype, seed, offset)
    mask = torch.zeros(s, dtype=torch.bool, device=DEVICE)
    mask[[i for i in ACTIVE if i < s]] = True
    return [mu, stds, x], mask


def bounded(floats, mask=None, **options):
    mu, stds, x = floats
    return fused_mi.kolchinsky_tracey(mu, stds, mask, x, **options)


def straight(floats, mask, bound, reduction="mean", eps=0.0):
    """A loop over pairs, of torch's own divergence, and of the formula."""
    mu, stds, x = (t[:, mask] for t in floats)
    centre, v = x + mu, stds.square() + eps
    rows = []
    for i in range(len(x)):
        row = []
        for j in range(len(x)):
            if bound == "upper":
                normals = [torch.distributions.Normal(centre[r], v[r].sqrt()) for r in (i, j)]
                terms = torch.distributions.kl_divergence(*normals)
            else:
                mean = (v[i] + v[j]) / 2
                terms = (centre[i] - centre[j]).square() / mean / 8
                terms = terms + (mean / (v[i] * v[j]).sqrt()).log() / 2
            row.append(terms.sum())
        rows.append(torch.stack(row))
    values = math.log(len(x)) - (-torch.stack(rows)).logsumexp(1)
    return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[reduction]()


@every_bound
@reduction
@pytest.mark.parametrize("masked", [False, True])
def test_float64(bound, reduction, masked):
    floats, mask = case()
    everywhere = torch.ones_like(mask)
    mask = mask if masked else everywhere
    eps = eps_of(floats[1], mask.expand(6, 4), 100.0, F64)
    ours_in, true_in = leaves(floats), leaves(floats)
    ours = bounded(ours_in, mask if masked else None, bound=bound, reduction=reduction)
    true = straight(true_in, mask, bound, reduction, eps)
    torch.testing.assert_close(ours, true, rtol=1e-11, atol=1e-12)
    upstream = torch.linspace(-1, 2, ours.numel(), dtype=F64, device=DEVICE).view(ours.shape)
    pulls = (gradients(v, t, grad_outputs=upstream) for v, t in ((ours, ours_in), (true, true_in)))
    for a, b in zip(*pulls, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_bound
@dtypes(F32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_rule_10(bound, dtype, offset):
    floats, mask = case(9, 3, 5, dtype, offset=offset)
    ours_in, naive_in, true_in = leaves(floats), leaves(floats, F32), leaves(floats, F64)
    eps = eps_of(floats[1], mask.expand(9, 3), 100.0, F32)
    ours = bounded(ours_in, mask, bound=bound)
    naive, true = (straight(t, mask, bound, eps=eps) for t in (naive_in, true_in))
    assert ours.dtype == F32
    # It is computed in float64 where there is that: what is left is a rounding of the result.
    eps = torch.finfo(F32).eps
    assert (ours - true).abs() <= 2 * (naive - true).abs() + 8 * eps * true.abs()
    found = (gradients(v, t) for v, t in ((ours, ours_in), (naive, naive_in), (true, true_in)))
    for a, b, c in zip(*found, strict=True):
        assert a.dtype == dtype
        floor = 8 * torch.finfo(dtype).eps * c.abs().max()
        assert ((a - c).abs() <= 2 * (b - c).abs().max() + floor).all()


def test_the_information_of_a_mixture_is_between_them():
    """In one dimension, by quadrature: the trapezoidal rule is exact to rounding there."""
    x = torch.tensor([-1.0, 0.4, 1.5, 1.6], dtype=F64)
    stds = torch.tensor([0.8, 0.5, 1.2, 0.3], dtype=F64)
    nodes = torch.linspace(-14, 15, 20001, dtype=F64)
    density = torch.distributions.Normal(x[:, None], stds[:, None]).log_prob(nodes).exp()
    each = (density * (density / density.mean(0)).log().nan_to_num(0.0, 0.0, 0.0)).mean(0)
    true = torch.trapezoid(each, nodes).item()
    floats = [t[:, None].to(DEVICE) for t in (torch.zeros_like(x), stds, x)]
    lower, upper = (bounded(floats, bound=bound, eps=0.0).item() for bound in ("lower", "upper"))
    assert 0 < lower < true < upper < math.log(4)


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-3, 1.0, 1e3, 1e9])
@dtypes(F32, F64)
def test_both_are_between_0_and_the_log_of_the_rows(spread, dtype):
    (mu, stds, x), _ = case(5, 2, 3)
    floats = [(spread * mu).to(dtype), (1 + spread * stds).to(dtype), (spread * x).to(dtype)]
    lower, upper = (bounded(floats, bound=b, reduction="none") for b in ("lower", "upper"))
    most = math.log(5) * (1 + 2 * torch.finfo(dtype).eps)
    assert (lower >= 0).all() and (upper <= most).all()
    assert (lower <= upper + 2 * torch.finfo(dtype).eps).all()
    if spread == 0:
        assert (upper == 0).all()


@every_bound
def test_far_apart_it_is_the_log_of_the_rows(bound):
    (mu, stds, x), _ = case(dtype=F32)
    value = bounded([mu, 1e-3 * stds, x], bound=bound)
    assert value.item() == pytest.approx(math.log(6), rel=1e-6)


@every_bound
@dtypes(F32, F64)
@pytest.mark.parametrize("power", [-18, 18, 140])
def test_extremes(bound, dtype, power):
    """One row's noise and centre are of another order of magnitude: nothing is NaN."""
    if dtype == F32 and power == 140:
        power = 36
    floats, _ = case(dtype=dtype)
    for t in floats:
        t[0] *= 10.0**power
    floats = leaves(floats)
    value = bounded(floats, bound=bound)
    assert 0 <= value <= math.log(6) * (1 + 1e-6)
    assert all(g.isfinite().all() for g in gradients(value, floats))


@every_bound
@pytest.mark.parametrize("hidden", [1e-9, math.nan, math.inf])
def test_hidden_values_have_no_influence(bound, hidden):
    floats, mask = case(dtype=F32)
    found = []
    for value in (1.0, hidden):
        for t in floats:
            t[:, ~mask] = value
        tensors = leaves(floats)
        result = bounded(tensors, mask, bound=bound, reduction="none")
        found.append([result.detach(), *gradients(result.sum(), tensors)])
    assert_same_bits(*found)
    assert all((g[:, ~mask] == 0).all() for g in found[1][1:])
    kept = bounded([t[:, mask] for t in floats], bound=bound, reduction="none")
    torch.testing.assert_close(found[0][0], kept)
    assert_same_bits([bounded(floats, mask.long(), bound=bound, reduction="none")], [found[0][0]])


@every_bound
def test_small_batches_and_shapes(bound):
    floats, _ = case(1)
    assert bounded(floats, bound=bound).item() == 0
    floats, _ = case(4, 1)
    flat = [t[:, 0] for t in floats]
    assert_same_bits([bounded(flat, bound=bound)], [bounded(floats, bound=bound)])
    same = [t[:1].expand(4, 1, 3) for t in floats]
    assert bounded(same, bound=bound).item() == 0


@every_bound
def test_derivatives(bound):
    floats, mask = case(3, 2, 2)

    def function(*floats):
        return bounded(floats, mask, bound=bound, reduction="none", eps=0.1)

    floats = leaves(floats)
    assert torch.autograd.gradcheck(function, floats)
    assert torch.autograd.gradgradcheck(function, floats)


@every_bound
def test_blocks(bound, monkeypatch):
    """Of few features at a time the same, and in transforms."""
    floats, mask = case(5, 4, 7)
    tensors = leaves(floats)
    want = bounded(tensors, mask, bound=bound)
    expected = gradients(want, tensors)
    monkeypatch.setitem(fused_mi.reference.streaming._BLOCK_ELEMENTS, "cpu", 300)
    tensors = leaves(floats)
    found = bounded(tensors, mask, bound=bound)
    torch.testing.assert_close(found, want, rtol=1e-13, atol=1e-13)
    for a, b in zip(gradients(found, tensors), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    slopes = torch.func.grad(lambda s: bounded([floats[0], s, floats[2]], mask, bound=bound))
    torch.testing.assert_close(slopes(floats[1]), expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bound", ["upper"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch
def test_one_graph(bound):
    torch._dynamo.reset()
    floats, mask = case(5, dtype=F32)
    compiled = torch.compile(
        lambda *t: bounded(t, mask, bound=bound), backend="aot_eager", fullgraph=True
    )
    ours_in, want_in = leaves(floats), leaves(floats)
    ours, want = compiled(*ours_in), bounded(want_in, mask, bound=bound)
    torch.testing.assert_close(ours, want)
    for a, b in zip(gradients(ours, ours_in), gradients(want, want_in), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="counts what the CPU allocator gives")
@pytest.mark.parametrize("bound", ["lower"])
def test_memory(bound):
    """Of both passes, below one tensor of pairs times features: 64 inputs in float64."""
    floats = leaves(case(32, 16, 128, F32)[0])
    with Allocations() as allocations:
        gradients(bounded(floats, bound=bound), floats)
    assert 3 * floats[0].nbytes < allocations.peak < 64 * floats[0].nbytes


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("means_tensor", None, TypeError, r"^means_tensor: expected a tensor, got NoneType"),
        ("means_tensor", torch.zeros(6), ValueError, r"^means_tensor: expected shape \(M, S, E\)"),
        ("stds_tensor", torch.zeros(6, 4, 2), ValueError, r"^stds_tensor: expected .* \(6, 4, 3\)"),
        ("clean_input_embeddings", torch.zeros(5, 4, 3), ValueError, r"^clean_input_embeddings: "),
        ("noise_mask", torch.zeros(6, 4), ValueError, r"^noise_mask: expected shape \(S,\) = \(4"),
        ("bound", "both", ValueError, r"^bound: expected one of 'upper', 'lower', got 'both'"),
        ("reduction", "all", ValueError, r"^reduction: expected one of 'mean', 'sum', 'none'"),
        ("eps", -1.0, ValueError, r"^eps: expected a finite number >= 0, got -1.0"),
    ],
)
def test_errors(name, value, error, said):
    (mu, stds, x), mask = case()
    arguments = {
        "means_tensor": mu,
        "stds_tensor": stds,
        "noise_mask": mask,
        "clean_input_embeddings": x,
    }
    arguments[name] = value.to(DEVICE) if isinstance(value, torch.Tensor) else value
    with pytest.raises(error, match=said):
        fused_mi.kolchinsky_tracey(**arguments)


def test_no_rows():
    empty = [t[:0] for t in case()[0]]
    with pytest.raises(ValueError, match=r"^means_tensor: expected at least one row"):
        bounded(empty)
