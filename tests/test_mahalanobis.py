"""The distance over broadcast leading dimensions."""

import pytest
import torch
from cases import DEVICE
from fused_mi import pairwise_square_mahalanobis_distance, square_mahalanobis_distance
from marks import dtypes
from oracle import eps_of

S, E = 4, 3
SHAPES = {
    "rows": ((5,), (5,), (5,), (5,)),
    "no leading dimension": ((), (), (), ()),
    "one x for all": ((), (5,), (5,), (5,)),
    "one mask for all": ((5,), (5,), (5,), ()),
    "outer": ((5, 1), (1, 2), (1, 2), (5, 1)),
    "outer, stds of the other side": ((5, 1), (1, 2), (5, 1), (5, 1)),
    "outer, mask of the other side": ((5, 1), (1, 2), (1, 2), (1, 2)),
    "outer, the other way round": ((1, 2), (5, 1), (5, 1), (5, 1)),
    "outer, full mask": ((5, 1), (1, 2), (1, 2), (5, 2)),
    "outer, full stds": ((5, 1), (1, 2), (5, 2), (5, 1)),
    "outer, no leading dimension for y": ((5, 1), (2,), (2,), (5, 1)),
    "outer of one": ((1, 1), (1, 2), (1, 2), (1, 1)),
    "three": ((2, 1, 3), (2, 4, 1), (4, 1), (3,)),
}
pytestmark = pytest.mark.every_device
every_pattern = pytest.mark.parametrize("pattern", SHAPES.values(), ids=SHAPES.keys())


def make(pattern, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    x, y, stds = (
        torch.randn(*lead, S, E, generator=gen, dtype=torch.float64) for lead in pattern[:3]
    )
    mask = torch.rand(*pattern[3], S, generator=gen) < 0.6
    mask[..., 0] = True
    tensors = (t.to(DEVICE, dtype) for t in (x, y, stds.abs() + 0.3))
    return *tensors, mask.to(DEVICE)


def naive(x, y, stds, mask, eps, dtype):
    terms = (x.to(dtype) - y.to(dtype)) ** 2 / (stds.to(dtype) ** 2 + eps)
    return torch.where(mask[..., None], terms, torch.zeros((), dtype=dtype)).sum((-2, -1)) / 2


def used_stds_mask(stds, mask, lead):
    """Positions of stds that an active position of the broadcast uses, by enumeration."""
    index = torch.arange(stds[..., 0].numel(), device=DEVICE).view(stds.shape[:-1]).expand(*lead, S)
    used = torch.zeros(stds[..., 0].numel(), dtype=torch.bool, device=DEVICE)
    used[index[mask.expand(*lead, S)]] = True
    return used.view(stds.shape[:-1])


@every_pattern
@dtypes(torch.float64, torch.float32)
def test_value_and_gradients(pattern, dtype):
    x, y, stds, mask = make(pattern, dtype)
    lead = torch.broadcast_shapes(*pattern)
    eps = eps_of(stds, used_stds_mask(stds, mask, lead), 100.0, dtype)
    results = {}
    for name, wide in (("ours", dtype), ("naive", dtype), ("true", torch.float64)):
        fresh = [t.detach().to(wide).requires_grad_() for t in (x, y, stds)]
        if name == "ours":
            q = square_mahalanobis_distance(*fresh, mask)
        else:
            q = naive(*fresh, mask, eps, wide)
        upstream = torch.linspace(-1, 2, max(q.numel(), 1)).view(q.shape).to(DEVICE, wide)
        results[name] = [q, *torch.autograd.grad(q, fresh, upstream)]
    assert results["ours"][0].shape == lead
    assert results["ours"][0].dtype == dtype
    for ours, plain, true in zip(results["ours"], results["naive"], results["true"], strict=True):
        assert ours.shape == true.shape
        largest = true.abs().max()  # terms of mixed sign cancel at most by the number of rows here
        if dtype == torch.float64:
            bound = 1e-11 * largest
        else:
            bound = 2 * (plain.double() - true).abs().max() + 8 * torch.finfo(dtype).eps * largest
        assert (ours.double() - true).abs().max() <= bound


@every_pattern
def test_hidden_positions_are_inert(pattern):
    x, y, stds, mask = make(pattern, torch.float32)
    lead = torch.broadcast_shapes(*pattern)
    clean = square_mahalanobis_distance(x, y, stds, mask)
    for index, tensor in enumerate((x, y, stds)):
        hidden = ~used_stds_mask(tensor, mask, lead)
        for poison in (torch.nan, torch.inf):
            inputs = [x.clone(), y.clone(), stds.clone()]
            inputs[index][hidden] = poison
            inputs = [t.requires_grad_() for t in inputs]
            q = square_mahalanobis_distance(*inputs, mask)
            assert torch.equal(q, clean)
            grads = torch.autograd.grad(q.sum(), inputs)
            assert all(torch.isfinite(g).all() for g in grads)
            assert (grads[index][hidden] == 0).all()


def test_the_two_forms_agree():
    x, y, stds, mask = make(SHAPES["outer"])
    mask[2] = True  # then every stds is in use, in both forms
    ours = square_mahalanobis_distance(x, y, stds, mask, 1e12)
    explicit = pairwise_square_mahalanobis_distance(
        x[:, 0], y[0], stds[0], mask[:, 0], safety_factor=1e12
    )
    torch.testing.assert_close(ours, explicit, rtol=1e-13, atol=0)


def test_the_minimum_covers_the_stds_in_use_only():
    x, y, stds, mask = make(SHAPES["outer"])
    mask[..., 1] = False
    before = square_mahalanobis_distance(x, y, stds, mask, 1e12)
    stds[:, :, 1] = 1e-3
    assert torch.equal(square_mahalanobis_distance(x, y, stds, mask, 1e12), before)
    stds[:, 1, 0] = 1e-3
    assert not torch.equal(square_mahalanobis_distance(x, y, stds, mask, 1e12), before)


def test_all_masks_false():
    x, y, stds, mask = make(SHAPES["rows"])
    x = x.requires_grad_()
    q = square_mahalanobis_distance(x, y, stds, torch.zeros_like(mask))
    (grad,) = torch.autograd.grad(q.sum(), x)
    assert (q == 0).all()
    assert (grad == 0).all()


def test_identical_and_extreme():
    x, _, stds, mask = make(SHAPES["rows"], torch.float32)
    assert (square_mahalanobis_distance(x, x, stds, mask) == 0).all()
    for sigma in (1e-20, 1e-40, 0.0, 1e20):
        q = square_mahalanobis_distance(x, x, torch.full_like(stds, sigma), mask)
        assert (q == 0).all()
        q = square_mahalanobis_distance(x, -x, torch.full_like(stds, sigma), mask)
        assert not torch.isnan(q).any()


def test_mixed_dtypes_accumulate_in_the_widest():
    x, y, stds, mask = make(SHAPES["rows"], torch.float32)
    assert square_mahalanobis_distance(x.half(), y, stds, mask).dtype == torch.float32
    assert square_mahalanobis_distance(x.half(), y.half(), stds.half(), mask).dtype == torch.float32
    assert square_mahalanobis_distance(x, y, stds.double(), mask).dtype == torch.float64


def test_empty():
    x, y, stds, mask = make(SHAPES["rows"])
    assert square_mahalanobis_distance(x[:0], y[:0], stds[:0], mask[:0]).shape == (0,)
    empty = square_mahalanobis_distance(x[..., :0], y[..., :0], stds[..., :0], mask)
    assert torch.equal(empty, torch.zeros(5, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("shape", ["rows", "outer"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch
def test_one_graph(shape):
    """Of streamed sums, and of all pairs."""
    torch._dynamo.reset()
    x, y, stds, mask = make(SHAPES[shape], torch.float32)
    compiled = torch.compile(square_mahalanobis_distance, backend="aot_eager", fullgraph=True)
    found, want = [], []
    for function, kept in ((compiled, found), (square_mahalanobis_distance, want)):
        leaves = [t.detach().clone().requires_grad_() for t in (x, y, stds)]
        kept.append(function(*leaves, mask))
        kept.extend(torch.autograd.grad(kept[0].sum(), leaves))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b)
