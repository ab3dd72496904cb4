"""What a noisy embedding tells about its token."""

import math

import fused_mi
import pytest
import torch
import torch.utils.checkpoint
from cases import DEVICE, assert_same_bits
from marks import dtypes, options

pytestmark = pytest.mark.every_backend
every_form = options(leave_own_out=(False, True), reduction=("mean", "sum", "none"))
leave = pytest.mark.parametrize("leave_own_out", [False, True])
NAMES = ("noisy", "centers", "stds", "token_log_probabilities")


def case(n=9, m=7, e=3, dtype=torch.float64, seed=0, sigma=0.7, offset=0.0):
    """(noisy, tokens, centers, stds, log p); token 1 has the least std."""
    gen = torch.Generator().manual_seed(seed)
    centers = torch.randn(m, e, generator=gen, dtype=torch.float64) + offset
    stds = sigma * (0.5 + torch.rand(m, e, generator=gen, dtype=torch.float64))
    stds[1, 0] = 0.4 * sigma
    weights = torch.randn(m, generator=gen, dtype=torch.float64).log_softmax(0)
    tokens = torch.randint(m, (n,), generator=gen)
    noise = torch.randn(n, e, generator=gen, dtype=torch.float64)
    noisy = centers[tokens] + stds[tokens] * noise
    noisy, centers, stds, weights = (t.to(DEVICE, dtype) for t in (noisy, centers, stds, weights))
    return noisy, tokens.to(DEVICE), centers, stds, weights


def leaves(inputs, dtype=None):
    return [
        t.detach().clone().to(dtype or t.dtype).requires_grad_() if t.is_floating_point() else t
        for t in inputs
    ]


def information(inputs, **options):
    noisy, tokens, centers, stds, weights = inputs
    return fused_mi.token_information(noisy, tokens, centers, stds, weights, **options)


def eager(inputs, eps, leave_own_out=False, reduction="mean", scale=False):
    """The documented formula; with `scale` the sum of the magnitudes of its terms."""
    noisy, tokens, centers, stds, weights = inputs
    v = stds.square() + eps
    q = ((noisy[:, None] - centers).square() / v).sum(-1) / 2
    logs = v.log() + math.log(2 * math.pi)
    density = -q - logs.sum(-1) / 2
    own = density.gather(1, tokens[:, None])[:, 0]
    weighted = density + weights
    if scale:
        size = q + logs.abs().sum(-1) / 2
        return 1 + size.gather(1, tokens[:, None])[:, 0] + (weighted.softmax(1) * size).sum(1)
    if leave_own_out:
        mine = torch.arange(len(centers), device=noisy.device) == tokens[:, None]
        weighted = weighted.masked_fill(mine, -math.inf)
        weighted = weighted - torch.log1p(-weights.exp())[tokens][:, None]
    found = own - weighted.logsumexp(1)
    return {"mean": found.mean, "sum": found.sum, "none": lambda: found}[reduction]()


def eps_of(stds, safety_factor=100.0):
    wide = stds.detach().to(torch.promote_types(stds.dtype, torch.float32))
    return (safety_factor * torch.finfo(wide.dtype).eps * wide.square().min()).item()


def pulled(value, inputs):
    gen = torch.Generator().manual_seed(1)
    upstream = torch.randn(value.shape, generator=gen, dtype=torch.float64).to(value)
    return torch.autograd.grad(value, [t for t in inputs if t.requires_grad], upstream)


@every_form
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float64(options, offset):
    inputs = case(offset=offset)
    ours_in, true_in = leaves(inputs), leaves(inputs)
    ours = information(ours_in, **options)
    true = eager(true_in, eps_of(inputs[3]), **options)
    assert ours.shape == true.shape and ours.dtype == torch.float64
    torch.testing.assert_close(ours, true, rtol=1e-11, atol=1e-11)
    for name, a, b in zip(NAMES, pulled(ours, ours_in), pulled(true, true_in), strict=True):
        assert (a - b).abs().max().item() <= 1e-10 * b.abs().max().item(), name


@every_form
@dtypes(torch.float32, torch.bfloat16, torch.float16)
def test_rule_10(options, dtype):
    """Errors at most twice those of the eager formula in float32, and a floor of the terms' sum."""
    inputs = case(dtype=dtype, e=17)
    stds = inputs[3]
    ours_in, naive_in, true_in = (leaves(inputs, d) for d in (None, torch.float32, torch.float64))
    ours = information(ours_in, **options)
    assert ours.dtype == torch.float32
    naive, true = (eager(t, eps_of(stds), **options) for t in (naive_in, true_in))
    sizes = eager(true_in, eps_of(stds), scale=True)
    sizes = {"mean": sizes.mean, "sum": sizes.sum, "none": lambda: sizes}[options["reduction"]]()
    floor = 8 * torch.finfo(torch.float32).eps * sizes
    assert ((ours - true).abs() <= 2 * (naive - true).abs() + floor).all()
    grads = (pulled(v, t) for v, t in ((ours, ours_in), (naive, naive_in), (true, true_in)))
    for a, b, c in zip(*grads, strict=True):
        assert a.dtype == dtype
        # Weights of pairs are relatively wrong by the error of an energy.
        floor = 8 * torch.finfo(dtype).eps * c.abs().max()
        floor = floor + 8 * torch.finfo(torch.float32).eps * c.abs().max() * sizes.abs().max()
        assert ((a - c).abs() <= 2 * (b - c).abs().max() + floor).all()


def test_the_mean_is_the_information_of_token_and_embedding():
    """In one dimension, by quadrature: of the function at the nodes, and of the densities."""
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    centers = torch.tensor([[-1.0], [0.4], [1.5]], dtype=torch.float64)
    stds = torch.tensor([[0.8], [0.5], [1.2]], dtype=torch.float64)

    def densities(nodes):
        """p_v N(y; v), and N(y; v): (3, nodes)."""
        density = torch.distributions.Normal(centers, stds).log_prob(nodes).exp()
        return p[:, None] * density, density

    # The trapezoidal rule is exact to rounding for such functions.
    nodes = torch.linspace(-14, 15, 20001, dtype=torch.float64)
    joint, density = densities(nodes)
    true = torch.trapezoid((joint * (density / joint.sum(0)).log()).sum(0), nodes).item()
    assert 0.3 < true < -(p * p.log()).sum().item()

    nodes = torch.linspace(-14, 15, 241, dtype=torch.float64)
    tokens = torch.arange(3).repeat_interleave(len(nodes))
    inputs = (nodes.repeat(3)[:, None], tokens, centers, stds, p.log())
    each = information([t.to(DEVICE) for t in inputs], reduction="none", safety_factor=0.0).cpu()
    found = torch.trapezoid(densities(nodes)[0] * each.view(3, -1), nodes).sum().item()
    assert found == pytest.approx(true, abs=1e-9)


def test_bounds():
    """Of each sample it is never above -log p of its token, as leaving that out explains."""
    inputs = case(n=40, m=12)
    each = information(inputs, reduction="none")
    prior = inputs[4][inputs[1]]
    assert (each <= -prior + 1e-12).all() and each.min() < 0 < each.max()
    apart = information(inputs, reduction="none", leave_own_out=True)
    mixed = -torch.logaddexp(prior, torch.log(-torch.expm1(prior)) - apart)
    torch.testing.assert_close(each, mixed, rtol=1e-11, atol=1e-11)
    assert (each <= (1 - prior.exp()) * apart + 1e-12).all()  # information of two, by Jensen


def test_tokens_that_are_told_apart_have_no_gradient():
    """None at all, not one of rounding errors, which an optimiser would scale up."""
    inputs = leaves(case(dtype=torch.float32, sigma=1e-4, e=20))
    value = information(inputs, reduction="none")
    prior = inputs[4][inputs[1]]
    torch.testing.assert_close(value, -prior, rtol=1e-5, atol=1e-5)
    of_noisy, of_centers, of_stds, of_weights = pulled(value.sum(), inputs)
    for g in (of_noisy, of_centers, of_stds):
        assert (g == 0).all()
    counts = torch.bincount(inputs[1].cpu(), minlength=len(prior)).to(of_weights)
    upstream = torch.randn((), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        of_weights.cpu(), -counts[: len(of_weights)].cpu() * upstream.float()
    )
    apart = leaves(case(dtype=torch.float32, sigma=1e-4, e=20))
    pulled(information(apart, leave_own_out=True), apart)
    value = information(apart, leave_own_out=True)
    assert value > 1e3 and all(g.isfinite().all() for g in pulled(value, apart))
    assert all((g != 0).any() for g in pulled(information(apart, leave_own_out=True), apart)[:3])


@leave
@dtypes(torch.float32, torch.float64)
def test_tokens_without_probability_are_not_there(leave_own_out, dtype):
    """No value of theirs has an influence, on the stabiliser neither."""
    noisy, tokens, centers, stds, weights = case(dtype=dtype, seed=3)
    absent = torch.tensor([4, 5], device=DEVICE)
    tokens = torch.where((tokens == 4) | (tokens == 5), 0, tokens)
    weights[absent] = -math.inf
    weights = weights.log_softmax(0)
    found = []
    for of_center, of_std in ((0.0, 1.0), (math.nan, math.nan), (1e30, 1e-12)):
        centers[absent], stds[absent] = of_center, of_std
        inputs = leaves((noisy, tokens, centers, stds, weights))
        value = information(inputs, leave_own_out=leave_own_out)
        found.append([value.detach(), *pulled(value, inputs)])
    for again in found[1:]:
        assert_same_bits(again, found[0])
    for g in found[0][2:]:
        assert (g[absent] == 0).all() and g.isfinite().all()
    kept = [0, 1, 2, 3, 6]
    fewer = torch.where(tokens == 6, 4, tokens)
    same = (noisy, fewer, centers[kept], stds[kept], weights[kept])
    torch.testing.assert_close(found[0][0], information(same, leave_own_out=leave_own_out))


@leave
def test_the_own_token_may_have_no_probability(leave_own_out):
    """Others have all of it: its own density counts all the same."""
    noisy, tokens, centers, stds, weights = case(seed=4)
    weights[2] = -math.inf
    weights = weights.log_softmax(0)
    tokens[:4] = 2
    inputs = leaves((noisy, tokens, centers, stds, weights))
    value = information(inputs, leave_own_out=leave_own_out, reduction="none")
    true_in = leaves((noisy, tokens, centers, stds, weights))
    true = eager(true_in, eps_of(stds), leave_own_out, "none")
    torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-10)
    for a, b in zip(pulled(value, inputs), pulled(true, true_in), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_nothing_is_left_where_a_token_has_all_probability():
    noisy, tokens, centers, stds, _ = case()
    weights = torch.full((7,), -math.inf, dtype=torch.float64, device=DEVICE)
    weights[2] = 0.0
    tokens[:] = 2
    inputs = (noisy, tokens, centers, stds, weights)
    assert (information(inputs, reduction="none").abs() < 1e-12).all()
    assert information(inputs, leave_own_out=True) == math.inf


@leave
def test_samples_far_from_every_token(leave_own_out):
    """Where float64 has no room for the energies nothing is known, and nothing is NaN."""
    noisy, tokens, centers, stds, weights = case()
    noisy[0] = 1e200
    inputs = leaves((noisy, tokens, centers, stds, weights))
    value = information(inputs, leave_own_out=leave_own_out, reduction="none")
    assert value[0].abs() < 3 and value.isfinite().all()
    assert all(not g.isnan().any() for g in pulled(value, inputs))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_tokens_of_any_integer_type(dtype):
    noisy, tokens, *rest = case()
    want = information((noisy, tokens, *rest))
    assert_same_bits([information((noisy, tokens.to(dtype), *rest))], [want])


def test_probabilities_in_float64_make_the_result_so():
    noisy, tokens, centers, stds, weights = case(dtype=torch.float32)
    inputs = leaves((noisy, tokens, centers, stds, weights.double()))
    value = information(inputs, eps=0.1)
    assert value.dtype == torch.float64
    wide = information(leaves((noisy, tokens, centers, stds, weights), torch.float64), eps=0.1)
    torch.testing.assert_close(value, wide, rtol=1e-12, atol=1e-12)
    dtypes_of_gradients = [g.dtype for g in pulled(value, inputs)]
    assert dtypes_of_gradients == [torch.float32] * 3 + [torch.float64]


@options(leave_own_out=(False, True), reduction=("mean", "none"))
def test_one_graph_for_every_number_of_samples(options):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(
        lambda *t: information(t, **options), backend="aot_eager", fullgraph=True, dynamic=True
    )
    for n in (5, 9):
        inputs = leaves(case(n=n, dtype=torch.float32))
        value = compiled(*inputs)
        want_in = leaves(inputs)
        want = information(want_in, **options)
        torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-6)
        for a, b in zip(pulled(value, inputs), pulled(want, want_in), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


@leave
def test_derivatives_of_second_order(leave_own_out):
    noisy, tokens, centers, stds, weights = case(n=2, m=3, e=1)

    def function(*floats):
        return information(
            (floats[0], tokens.clamp(max=2), *floats[1:]),
            leave_own_out=leave_own_out,
            reduction="none",
            eps=0.1,
        )

    inputs = [t.requires_grad_() for t in (noisy, centers, stds, weights)]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_transforms():
    """vmap over layers, and their gradients."""
    noisy, tokens, centers, stds, weights = case(n=4, m=5, e=2)
    tokens = tokens.clamp(max=4)
    layers = torch.stack((stds, 2 * stds))

    def of_layer(stds):
        return information((noisy, tokens, centers, stds, weights), eps=0.1)

    want = torch.stack([of_layer(s) for s in layers])
    torch.testing.assert_close(torch.func.vmap(of_layer)(layers), want)
    found = torch.func.vmap(torch.func.grad(of_layer))(layers)
    inputs = leaves((noisy, tokens, centers, layers[1], weights))
    grads = torch.autograd.grad(information(inputs, eps=0.1), inputs[3])
    torch.testing.assert_close(found[1], grads[0])


def test_frozen_inputs():
    inputs = leaves(case(dtype=torch.float32))
    full = pulled(information(inputs), inputs)
    for i, j in enumerate((0, 2, 3, 4)):
        some = [t.detach() for t in inputs]
        some[j].requires_grad_()
        assert_same_bits(pulled(information(some), some), [full[i]])


@pytest.mark.parametrize(
    ("index", "value", "error", "said"),
    [
        (
            1,
            torch.zeros(9),
            TypeError,
            r"^tokens: expected a dense integer tensor, got torch.float32",
        ),
        (1, [0] * 9, TypeError, r"^tokens: expected a tensor, got list"),
        (
            1,
            torch.zeros(8, dtype=torch.int64),
            ValueError,
            r"^tokens: expected shape \(N,\) = \(9,\)",
        ),
        (0, torch.zeros(9, 4), ValueError, r"^centers: expected shape \(M, E\) = \(7, 4\)"),
        (0, torch.zeros(9, 1, 3), ValueError, r"^noisy: expected shape \(N, E\), got"),
        (0, torch.zeros(0, 3), ValueError, r"^noisy: expected at least one row"),
        (3, torch.zeros(6, 3), ValueError, r"^stds: expected shape \(M, E\) = \(7, 3\)"),
        (
            4,
            torch.zeros(7, 1),
            ValueError,
            r"^token_log_probabilities: expected shape \(M,\) = \(7,\)",
        ),
        (4, None, TypeError, r"^token_log_probabilities: expected a tensor, got NoneType"),
    ],
)
def test_errors(index, value, error, said):
    inputs = list(case())
    inputs[index] = value.to(DEVICE) if isinstance(value, torch.Tensor) else value
    with pytest.raises(error, match=said):
        information(inputs)


@pytest.mark.parametrize("wrong", [-1, 7])
def test_a_token_that_is_not_there(wrong):
    noisy, tokens, *rest = case()
    tokens[3] = wrong
    if DEVICE.type != "cpu":  # where nobody waits for the values of tensors
        found = information((noisy, tokens, *rest), reduction="none")
        assert found.isnan().nonzero()[:, 0].tolist() == [3]
        return
    with pytest.raises(ValueError, match=rf"^tokens: expected rows 0 to 6 .*, got {wrong}$"):
        information((noisy, tokens, *rest))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reduction": "all"}, r"^reduction: expected one of 'mean', 'sum', 'none', got 'all'"),
        ({"leave_own_out": 1}, r"^leave_own_out: expected True or False, got 1"),
        ({"safety_factor": -1.0}, r"^safety_factor: expected a finite number >= 0, got -1.0"),
        ({"eps": -1.0}, r"^eps: expected a finite number >= 0, got -1.0"),
    ],
)
def test_options_that_are_unknown(options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        information(case(), **options)


@leave
def test_modes(leave_own_out):
    """Autocast, inference, checkpoints, forward mode."""
    inputs = case(dtype=torch.float32)

    def function(noisy):
        return information((noisy, *inputs[1:]), leave_own_out=leave_own_out)

    want = function(inputs[0])
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert_same_bits([function(inputs[0])], [want])
    with torch.inference_mode():
        assert torch.equal(function(inputs[0]), want)
    noisy, plain = (inputs[0].clone().requires_grad_() for _ in range(2))
    value = torch.utils.checkpoint.checkpoint(function, noisy, use_reentrant=False)
    (found,), (expected,) = pulled(value, [noisy]), pulled(function(plain), [plain])
    assert_same_bits([value, found], [want, expected])
    tangent = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    _, slope = torch.func.jvp(function, (inputs[0],), (tangent,))
    (gradient,) = torch.autograd.grad(function(plain), plain)
    assert slope.item() == pytest.approx((gradient * tangent).sum().item(), rel=1e-4, abs=1e-5)
