"""CLUB in linear time, and the class that learns its q(y|x)."""

import fused_mi
import pytest
import torch
from cases import DEVICE, assert_same_bits, interpreted
from marks import dtypes, options
from test_scaling import Allocations

pytestmark = pytest.mark.every_device
every_form = options(masked=(False, True), reduction=("mean", "sum", "none"))
NAMES = ("mean", "logvar", "y")


def case(b=9, s=2, d=5, dtype=torch.float64, seed=0, offset=0.0):
    """(mean, logvar, y, mask): x tells half of y; some rows have no active position."""
    gen = torch.Generator().manual_seed(seed)
    mean, logvar, noise = torch.randn(3, b, s, d, generator=gen, dtype=torch.float64).unbind()
    y = mean + (logvar / 2).exp() * noise
    mask = torch.rand(b, s, generator=gen) < 0.6
    return [t.to(DEVICE, dtype) for t in (mean + offset, logvar, y + offset)] + [mask.to(DEVICE)]


def leaves(inputs, dtype=None):
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in inputs[:3]]


def club(floats, mask=None, reduction="mean"):
    return fused_mi.club(*floats, mask, reduction=reduction)


def straight(floats, mask=None, reduction="mean"):
    """Every pair: log q(y_i|x_i) less the mean over l of log q(y_i|x_l), over what i has. With
    `sizes` the magnitudes of the terms in place of them."""
    energies = _energies(floats, mask)
    found = energies.mean(1) - energies.diagonal()
    return {"mean": found.mean, "sum": found.sum, "none": lambda: found}[reduction]()


def _energies(floats, mask, size=False):
    mean, logvar, y = floats
    terms = (y[:, None] - mean).square() / logvar.exp() + (logvar.abs() if size else logvar)
    if mask is not None:
        terms = torch.where(mask[:, None, :, None], terms, 0)
    return terms.sum((2, 3)) / 2


def published(mean, logvar, y):
    """The formula of the paper's `forward`, (B, D): the samples averaged before the division."""
    spread = (y[None] - mean[:, None]).square().mean(1)
    return ((spread - (y - mean).square()) / (2 * logvar.exp())).sum(1).mean()


def scales(floats, mask, reduction):
    """Sums of the magnitudes of the terms of the value, and of the gradients."""
    mean, logvar, y = (t.detach().double() for t in floats)
    b = len(y)
    size = _energies((mean, logvar, y), mask, size=True)
    of_rows = size.mean(1) + size.diagonal()
    weight = (torch.full((b, b), 1 / b, device=y.device, dtype=y.dtype) + torch.eye(b).to(y))[
        ..., None, None
    ] * (1 if mask is None else mask[:, None, :, None])
    slope = weight * (y[:, None] - mean).abs() / logvar.exp()
    bend = weight * (1 + (y[:, None] - mean).square() / logvar.exp()) / 2
    share = 1 / b if reduction == "mean" else 1
    value = of_rows if reduction == "none" else of_rows.sum() * share
    return value, [share * slope.sum(0), share * bend.sum(0), share * slope.sum(1)]


def pulled(value, floats):
    gen = torch.Generator().manual_seed(1)
    upstream = torch.rand(value.shape, generator=gen, dtype=torch.float64).to(value)
    return torch.autograd.grad(value, floats, upstream)


@pytest.mark.every_backend
@every_form
@pytest.mark.parametrize("offset", [0.0, 5e5])
def test_float64(options, offset):
    *inputs, mask = case(offset=offset)
    mask = mask if options["masked"] else None
    ours_in, true_in = leaves(inputs), leaves(inputs)
    ours = club(ours_in, mask, options["reduction"])
    true = straight(true_in, mask, options["reduction"])
    assert ours.shape == true.shape and ours.dtype == torch.float64
    size, of_gradients = scales(inputs, mask, options["reduction"])
    assert ((ours - true).abs() <= 1e-11 * size).all()
    found = pulled(ours, ours_in), pulled(true, true_in)
    for name, a, b, scale in zip(NAMES, *found, of_gradients, strict=True):
        assert ((a - b).abs() <= 1e-11 * scale.max()).all(), name


@pytest.mark.every_backend
@every_form
@dtypes(torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_rule_10(options, dtype, offset):
    *inputs, mask = case(dtype=dtype, d=17, offset=offset)
    mask = mask if options["masked"] else None
    reduction = options["reduction"]
    ours_in, naive_in, true_in = (leaves(inputs, d) for d in (None, torch.float32, torch.float64))
    ours = club(ours_in, mask, reduction)
    assert ours.dtype == torch.float32
    naive, true = (straight(t, mask, reduction) for t in (naive_in, true_in))
    size, of_gradients = scales(inputs, mask, reduction)
    floor = 8 * torch.finfo(torch.float32).eps * size
    assert ((ours - true).abs() <= 2 * (naive - true).abs().max() + floor).all()
    found = (pulled(v, t) for v, t in ((ours, ours_in), (naive, naive_in), (true, true_in)))
    for name, a, b, c, scale in zip(NAMES, *found, of_gradients, strict=True):
        assert a.dtype == dtype
        bound = 2 * (b - c).abs().max() + 8 * torch.finfo(dtype).eps * scale
        assert ((a.double() - c).abs() <= bound).all(), name


@pytest.mark.every_backend
@pytest.mark.parametrize("b", [1, 2, 33])
def test_the_published_formula(b):
    mean, logvar, y = (t.squeeze(1) for t in case(b, 1)[:3])
    ours_in, true_in = leaves((mean, logvar, y)), leaves((mean, logvar, y))
    ours, true = fused_mi.club(*ours_in), published(*true_in)
    torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-13)
    for a, b in zip(pulled(ours, ours_in), pulled(true, true_in), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_one_row_tells_nothing():
    *inputs, _ = case(1, dtype=torch.float32)
    floats = leaves(inputs)
    value = club(floats)
    size, scale = scales(inputs, None, "mean")
    assert abs(value.item()) <= 8 * torch.finfo(torch.float32).eps * size.item()
    for g, bound in zip(pulled(value, floats), scale, strict=True):
        assert (g.abs() <= 8 * torch.finfo(torch.float32).eps * bound).all()


@pytest.mark.every_backend
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("hidden", [0.0, float("nan"), float("inf")])
def test_what_no_sample_uses_has_no_influence(reduction, hidden):
    mean, logvar, y, mask = case(s=3, dtype=torch.float32)
    mask[:, 1] = False
    found = []
    for value in (1.0, hidden):
        y[~mask] = value
        mean[:, 1], logvar[:, 1] = value, value
        floats = leaves((mean, logvar, y))
        result = club(floats, mask, reduction)
        found.append([result.detach(), *pulled(result, floats)])
    assert_same_bits(*found)
    assert (found[0][3][~mask] == 0).all()
    assert (found[0][1][:, 1] == 0).all() and (found[0][2][:, 1] == 0).all()
    assert all(t.isfinite().all() for t in found[1])


def test_masks_of_any_type():
    *floats, mask = case(dtype=torch.float32)
    want = club(floats, mask)
    for dtype in (torch.uint8, torch.int64, torch.float32):
        assert_same_bits([club(floats, mask.to(dtype))], [want])
    flat = [t[:, 0] for t in floats]
    deep = [t[:, :1] for t in floats]
    assert_same_bits([club(flat, mask[:, 0])], [club(deep, mask[:, :1])])


@pytest.mark.every_backend
@pytest.mark.parametrize("logvar", [-120.0, -80.0, 60.0])
@pytest.mark.parametrize("far", [1.0, 1e6])
def test_extremes(logvar, far):
    """Variances beyond the range of float32, and one sample far from all means: by rule 10."""
    mean, _, y, _ = case(dtype=torch.float32)
    scale = torch.full_like(mean, logvar)
    y[0] *= far
    deviation = (scale / 2).exp()  # in these units, so that no energy leaves the range
    inputs = (mean * deviation, scale, y * deviation)
    floats, true_in = leaves(inputs), leaves(inputs, torch.float64)
    ours, true = club(floats), straight(true_in)
    size, of_gradients = scales(inputs, None, "mean")
    eps = torch.finfo(torch.float32).eps
    assert (ours - true).abs() <= 8 * eps * size
    for a, c, bound in zip(pulled(ours, floats), pulled(true, true_in), of_gradients, strict=True):
        assert ((a - c).abs() <= 8 * eps * bound + torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives(masked, reduction):
    *inputs, mask = case(3, 2, 1)
    mask = mask if masked else None
    floats = leaves(inputs)
    assert torch.autograd.gradcheck(lambda *t: club(t, mask, reduction), floats)
    assert torch.autograd.gradgradcheck(lambda *t: club(t, mask, reduction), floats)


@pytest.mark.parametrize(("masked", "reduction"), [(False, "mean"), (True, "none")])
def test_one_graph_for_every_batch(masked, reduction):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(
        lambda *t: club(t[:3], t[3] if masked else None, reduction),
        backend="aot_eager",
        fullgraph=True,
        dynamic=True,
    )
    for rows in (6, 9):  # another size than those of the other dimensions
        *inputs, mask = case(rows, dtype=torch.float32)
        ours_in, want_in = leaves(inputs), leaves(inputs)
        ours = compiled(*ours_in, mask)
        want = club(want_in, mask if masked else None, reduction)
        torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-6)
        for a, b in zip(pulled(ours, ours_in), pulled(want, want_in), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.every_backend
def test_65536_rows():
    """Both passes, in the memory of a few inputs; a matrix of pairs would take 16 GiB."""
    b = 65536 if DEVICE.type != "cpu" or not interpreted() else 256
    mean, logvar, y = (t.squeeze(1) for t in case(b, 1, 8, torch.float32)[:3])
    floats = leaves((mean, logvar, y))
    with Allocations() as allocations:
        value = fused_mi.club(*floats)
        grads = torch.autograd.grad(value, floats)
    if DEVICE.type == "cpu" and b == 65536:
        assert 3 * y.nbytes < allocations.peak < 24 * y.nbytes
    mean, logvar, y = (t.detach().double() for t in floats)
    weight = (-logvar).exp()
    spread = y.var(0, correction=0) + (y.mean(0) - mean).square()
    own = (y - mean).square()
    each = (spread - own) * weight / 2
    size = ((spread + own) * weight).sum(1).mean() / 2
    eps = torch.finfo(torch.float32).eps
    assert (value - each.sum(1).mean()).abs() <= 8 * eps * size
    rows = slice(0, 16)  # of which each pair is looked at
    distance, weight = y[:, None] - mean[rows], weight[rows] / b
    own = (y - mean)[rows]
    of_mean = (own - distance.mean(0)) * weight
    size = (own.abs() + distance.abs().mean(0)) * weight
    assert ((grads[0][rows] - of_mean).abs() <= 8 * eps * size).all()
    of_logvar = (own.square() - distance.square().mean(0)) * weight / 2
    size = (own.square() + distance.square().mean(0)) * weight / 2
    assert ((grads[1][rows] - of_logvar).abs() <= 8 * eps * size).all()


PARAMETERS = {  # of the published class, of x_dim 3, y_dim 2 and hidden_size 8
    "p_mu.0.weight": (4, 3),
    "p_mu.0.bias": (4,),
    "p_mu.2.weight": (2, 4),
    "p_mu.2.bias": (2,),
    "p_logvar.0.weight": (4, 3),
    "p_logvar.0.bias": (4,),
    "p_logvar.2.weight": (2, 4),
    "p_logvar.2.bias": (2,),
}


def module_and_samples(dtype=torch.float64):
    module = fused_mi.CLUB(3, 2, 8).to(DEVICE, dtype)
    x = torch.randn(7, 3, dtype=torch.float64).to(DEVICE, dtype)
    y = torch.randn(7, 2, dtype=torch.float64).to(DEVICE, dtype)
    return module, x, y


def test_published_checkpoints_load():
    module, x, _ = module_and_samples()
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == PARAMETERS
    gen = torch.Generator().manual_seed(3)
    state = {
        name: torch.randn(shape, generator=gen, dtype=torch.float64).to(DEVICE)
        for name, shape in PARAMETERS.items()
    }
    module.load_state_dict(state)

    def network(name):
        hidden = (x @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]).clamp(min=0)
        return hidden @ state[f"{name}.2.weight"].T + state[f"{name}.2.bias"]

    mean, logvar = module.get_mu_logvar(x)
    torch.testing.assert_close(mean, network("p_mu"))
    torch.testing.assert_close(logvar, network("p_logvar").tanh())


def test_methods_of_the_published_class():
    module, x, y = module_and_samples()
    mean, logvar = module.get_mu_logvar(x)
    torch.testing.assert_close(module(x, y), published(mean, logvar, y), rtol=1e-12, atol=1e-13)
    each = [
        sum(-((y[i, e] - mean[i, e]) ** 2) / logvar[i, e].exp() - logvar[i, e] for e in range(2))
        for i in range(7)
    ]
    torch.testing.assert_close(module.loglikeli(x, y), sum(each) / 7)
    assert_same_bits([module.learning_loss(x, y)], [-module.loglikeli(x, y)])
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    constant = 2 * torch.log(torch.tensor(2 * torch.pi)).item()
    twice = 2 * normal.log_prob(y).sum(1).mean() + constant
    torch.testing.assert_close(module.loglikeli(x, y), twice)
    grads = torch.autograd.grad(module(x, y), list(module.parameters()))
    true = torch.autograd.grad(published(mean, logvar, y), list(module.parameters()))
    for a, b in zip(grads, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_modes():
    module, x, y = module_and_samples(torch.float32)
    want = module(x, y)
    with torch.inference_mode():
        assert torch.equal(module(x, y), want)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), want)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert module(x, y).dtype == torch.float32


@pytest.mark.parametrize(
    ("index", "value", "error", "said"),
    [
        (0, None, TypeError, r"^mean: expected a tensor, got NoneType"),
        (0, torch.zeros(5), ValueError, r"^mean: expected shape \(B, S, E\), got \(5,\)"),
        (1, torch.zeros(9, 2, 4), ValueError, r"^logvar: expected shape .* = \(9, 2, 5\), got"),
        (2, torch.zeros(8, 2, 5), ValueError, r"^y: expected shape .* = \(9, 2, 5\), got \(8,"),
        (2, torch.zeros(9, 2, 5).long(), TypeError, r"^y: expected a dense tensor of float16,"),
        (3, torch.zeros(9, 3), ValueError, r"^mask: expected shape \(N, S\) = \(9, 2\), got"),
    ],
)
def test_errors(index, value, error, said):
    arguments = case()
    arguments[index] = value.to(DEVICE) if isinstance(value, torch.Tensor) else value
    with pytest.raises(error, match=said):
        fused_mi.club(*arguments)


def test_errors_of_options():
    with pytest.raises(ValueError, match=r"^reduction: expected one of 'mean', 'sum', 'none'"):
        fused_mi.club(*case(), reduction="all")
    with pytest.raises(ValueError, match=r"^mean: expected at least one row"):
        fused_mi.club(*(t[:0] for t in case()[:3]))
    with pytest.raises(ValueError, match=r"^hidden_size: expected at least 2, got 1"):
        fused_mi.CLUB(3, 2, 1)
