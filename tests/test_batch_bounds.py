"""L1Out and InfoNCE with the known density."""

import math

import fused_mi
import pytest
import torch
from cases import DEVICE, FLOATING, MASK, assert_same_bits, gradients, leaves, mi, mi_inputs
from marks import dtypes
from oracle import eps_of

pytestmark = pytest.mark.every_device
FUNCTIONS = (fused_mi.l1out, fused_mi.infonce)
every_bound = pytest.mark.parametrize("bound", FUNCTIONS, ids=lambda f: f.__name__)
reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
F32 = torch.float32


def energies(inputs, eps, size=False):
    """-log p(y_i|x_l) over the active positions of sample i, (B, B); with `size` the sums of the
    magnitudes of their terms."""
    mu, stds, mask, x, y = inputs
    v = stds.square() + eps
    logs = v.log() + math.log(2 * math.pi)
    terms = (y[:, None] - x - mu).square() / v + (logs.abs() if size else logs)
    return torch.where(mask[:, None, :, None], terms, 0).sum((2, 3)) / 2


def straight(bound, inputs, eps, reduction="mean"):
    found = energies(inputs, eps)
    own, others = found.diagonal(), bound is fused_mi.l1out
    if others:
        found = found.masked_fill(torch.eye(len(own), dtype=torch.bool).to(DEVICE), math.inf)
    values = math.log(len(own) - others) - own - (-found).logsumexp(1)
    return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[reduction]()


def wide(inputs, dtype=torch.float64):
    return leaves(inputs, dtype)


def eps_in(inputs, dtype):
    mask = inputs[MASK].any(0).expand_as(inputs[MASK])
    return eps_of(inputs[1], mask, 100.0, dtype)


def pulled(value, inputs):
    gen = torch.Generator().manual_seed(5)
    upstream = torch.randn(value.shape, generator=gen, dtype=torch.float64).to(value)
    return gradients(value, inputs, grad_outputs=upstream)


@pytest.mark.every_backend
@every_bound
@reduction
@pytest.mark.parametrize("offset", [0.0, 5e5])
def test_float64(bound, reduction, offset):
    inputs = mi_inputs(offset=offset)
    ours_in, true_in = leaves(inputs), leaves(inputs)
    ours = bound(*ours_in, reduction=reduction)
    true = straight(bound, true_in, eps_in(inputs, torch.float64), reduction)
    assert ours.shape == true.shape and ours.dtype == torch.float64
    tolerance = 1e-11 * energies(inputs, 0, size=True).max().item() * len(inputs[0])
    assert (ours - true).abs().max().item() <= tolerance
    for a, b in zip(pulled(ours, ours_in), pulled(true, true_in), strict=True):
        assert (a - b).abs().max().item() <= tolerance * b.abs().max().item()


@pytest.mark.every_backend
@every_bound
@dtypes(torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rule_10(bound, dtype, reduction):
    inputs = mi_inputs(6, 2, 9, dtype, seed=3)
    ours_in, naive_in, true_in = leaves(inputs), wide(inputs, F32), wide(inputs)
    eps = eps_in(inputs, F32)
    ours = bound(*ours_in, reduction=reduction)
    assert ours.dtype == F32
    naive, true = (straight(bound, t, eps, reduction) for t in (naive_in, true_in))
    size = energies(wide(inputs), eps, size=True).detach()
    # Of the own row, and of those that weigh.
    size = 1 + size.diagonal() + size.amax(1)
    whole = size if reduction == "none" else size.mean()
    epsilon = torch.finfo(F32).eps
    assert ((ours - true).abs() <= 2 * (naive - true).abs().max() + 8 * epsilon * whole).all()
    found = (pulled(v, t) for v, t in ((ours, ours_in), (naive, naive_in), (true, true_in)))
    for a, b, c in zip(*found, strict=True):
        assert a.dtype == dtype
        # A weight of a pair is relatively wrong by the error of an energy.
        floor = 8 * (torch.finfo(dtype).eps + epsilon * size.max()) * c.abs().max()
        assert ((a - c).abs() <= 2 * (b - c).abs().max() + floor).all()


def test_each_follows_from_the_other():
    """Of one row: the own density is one of B in the mean of InfoNCE."""
    inputs = mi_inputs(7)
    apart, among = (bound(*inputs, reduction="none") for bound in FUNCTIONS)
    share = torch.full_like(apart, 1 / 7)
    mixed = -torch.logaddexp(share.log(), torch.log1p(-share) - apart)
    torch.testing.assert_close(among, mixed, rtol=1e-11, atol=1e-11)
    assert (among <= math.log(7) + 1e-12).all()


@pytest.mark.every_backend
@pytest.mark.parametrize("batch", [2, 6, 7])
def test_the_loss_less_a_control_variate(batch):
    """q_ii - d/2, whose expectation is 0, is all that tells the loss from L1Out, and the linear
    one from CLUB."""
    inputs = mi_inputs(batch, density=1.0)
    mu, stds, mask, x, y = inputs
    options = {"reduction": "mean", "pairing": "leave_one_out", "constant": "subtract"}
    own = fused_mi.square_mahalanobis_distance(x + mu, y, stds, mask)
    control = (own - x[0].numel() / 2).mean()
    loss = mi(inputs, estimator="logsumexp", **options)
    torch.testing.assert_close(loss - control, fused_mi.l1out(*inputs), rtol=1e-11, atol=1e-11)
    linear = mi(inputs, safety_factor=0.0, **options) - control
    club = fused_mi.club(x + mu, 2 * stds.log(), y) * batch / (batch - 1)
    torch.testing.assert_close(linear, club, rtol=1e-11, atol=1e-11)


@pytest.mark.every_backend
@every_bound
@pytest.mark.parametrize("hidden", [1e-9, math.nan, math.inf])
def test_what_no_row_uses_has_no_influence(bound, hidden):
    """On the stabiliser neither; and samples are not read where they are not active."""
    inputs = mi_inputs(dtype=F32)
    inputs[MASK][:, 2] = False
    found = []
    for value in (1.0, hidden):
        for i in FLOATING:
            inputs[i][:, 2] = value
        inputs[4][~inputs[MASK]] = value
        tensors = leaves(inputs)
        result = bound(*tensors, reduction="none")
        found.append([result.detach(), *pulled(result, tensors)])
    assert_same_bits(*found)
    assert all(g.isfinite().all() and (g[:, 2] == 0).all() for g in found[1][1:])
    kept = [t[:, [0, 1, 3]] for t in inputs]
    torch.testing.assert_close(bound(*kept, reduction="none"), found[0][0])


@every_bound
def test_masks_of_any_type_and_one_position(bound):
    inputs = mi_inputs(dtype=F32)
    want = bound(*inputs)
    for dtype in (torch.uint8, torch.int64, F32):
        masked = [t.to(dtype) if i == MASK else t for i, t in enumerate(inputs)]
        assert_same_bits([bound(*masked)], [want])
    one = [t[:, :1] for t in inputs]
    assert_same_bits([bound(*(t[:, 0] for t in one))], [bound(*one)])


@pytest.mark.every_backend
@pytest.mark.parametrize("dtype", [F32, torch.float64], ids=str)
def test_little_noise(dtype):
    """Every row is told apart: InfoNCE is log B, exactly without gradients, and L1Out goes on."""
    inputs = leaves(mi_inputs(dtype=dtype))
    with torch.no_grad():
        inputs[1].fill_(1e-4)
        inputs[4].copy_(inputs[3] + inputs[0])
        inputs[MASK][:] = True
    among = fused_mi.infonce(*inputs)
    assert among.item() == pytest.approx(math.log(6), rel=1e-6)
    assert all((g == 0).all() for g in gradients(among, inputs))
    apart = fused_mi.l1out(*inputs)
    assert apart > 1e6 and all(g.isfinite().all() for g in gradients(apart, inputs))


@pytest.mark.every_backend
@every_bound
def test_a_sample_far_from_every_row(bound):
    inputs = leaves(mi_inputs(dtype=F32))
    with torch.no_grad():
        inputs[4][0] = 1e15
    value = bound(*inputs, reduction="none")
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in pulled(value, inputs))


@every_bound
def test_rows_that_are_all_alike_tell_nothing(bound):
    mu, stds, mask, x, y = mi_inputs(density=1.0)
    same = [t[:1].expand_as(t) for t in (mu, stds, mask, x)]
    value = bound(*same, y, reduction="none")
    assert (value.abs() <= 1e-12 * energies([*same, y], 0, size=True).max()).all()


def test_small_batches():
    one, two = (mi_inputs(b, density=1.0) for b in (1, 2))
    assert fused_mi.infonce(*one).abs() < 1e-12
    with pytest.raises(ValueError, match=r"^means_tensor: expected a batch of at least 2, got B ="):
        fused_mi.l1out(*one)
    with pytest.raises(ValueError, match=r"^means_tensor: expected a batch of at least 1, got B ="):
        fused_mi.infonce(*(t[:0] for t in one))
    (a, b), (c, d) = energies(two, eps_in(two, torch.float64)).tolist()
    assert fused_mi.l1out(*two).item() == pytest.approx(((b - a) + (c - d)) / 2, rel=1e-10)


@every_bound
def test_nothing_active(bound):
    inputs = leaves(mi_inputs())
    inputs[MASK][:] = False
    value = bound(*inputs)
    assert value.abs() < 1e-15 and all((g == 0).all() for g in gradients(value, inputs))


@every_bound
def test_a_fixed_stabiliser(bound):
    inputs = mi_inputs()
    want = straight(bound, inputs, 0.3)
    torch.testing.assert_close(bound(*inputs, eps=0.3), want, rtol=1e-11, atol=1e-11)


@every_bound
def test_derivatives(bound):
    inputs = leaves(mi_inputs(3, 2, 1))

    def function(*floats):
        given = [*floats[:2], inputs[MASK], *floats[2:]]
        return bound(*given, reduction="none", eps=0.1)

    floats = [t for t in inputs if t.requires_grad]
    assert torch.autograd.gradcheck(function, floats)
    assert torch.autograd.gradgradcheck(function, floats)


@pytest.mark.parametrize(
    ("bound", "reduction"), [(fused_mi.l1out, "none"), (fused_mi.infonce, "mean")]
)
def test_one_graph_for_every_batch(bound, reduction):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(
        lambda *t: bound(*t, reduction=reduction),
        backend="aot_eager",
        fullgraph=True,
        dynamic=True,
    )
    for rows in (6, 9):
        inputs = mi_inputs(rows, dtype=F32)
        ours_in, want_in = leaves(inputs), leaves(inputs)
        ours = compiled(*ours_in)
        want = bound(*want_in, reduction=reduction)
        torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-6)
        for a, b in zip(pulled(ours, ours_in), pulled(want, want_in), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


@every_bound
@pytest.mark.parametrize("index", FLOATING)
def test_errors(bound, index):
    inputs = mi_inputs()
    wrong = [t[:, :, :2] if i == index else t for i, t in enumerate(inputs)]
    with pytest.raises(ValueError, match=r"expected shape \(B, S, E\) = "):
        bound(*wrong)
    wrong = [None if i == index else t for i, t in enumerate(inputs)]
    with pytest.raises(TypeError, match=r": expected a tensor, got NoneType$"):
        bound(*wrong)
    wrong[index], wrong[MASK] = inputs[index], inputs[MASK][:, :3]
    with pytest.raises(ValueError, match=r"^noise_mask: expected shape \(B, S\) = \(6, 4\), got"):
        bound(*wrong)


@every_bound
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reduction": "all"}, r"^reduction: expected one of 'mean', 'sum', 'none', got 'all'"),
        ({"safety_factor": -1.0}, r"^safety_factor: expected a finite number >= 0, got -1.0"),
        ({"eps": -1.0}, r"^eps: expected a finite number >= 0, got -1.0"),
    ],
)
def test_errors_of_options(bound, options, said):
    with pytest.raises(ValueError, match=said):
        bound(*mi_inputs(), **options)
