"""Inputs that many tests start from, and one way to run a function on them."""

import contextlib
import os

import fused_mi
import torch

DEVICE = torch.device(os.environ.get("FUSED_MI_TEST_DEVICE", "cpu"))  # see conftest.py
ALL_CASES = os.environ.get("FUSED_MI_TEST_ALL", "0") != "0"  # so is this
MI_ARGUMENTS = (
    "means_tensor",
    "stds_tensor",
    "noise_mask",
    "clean_input_embeddings",
    "noisy_input_embeddings",
)
MASK = 2  # index of the mask among them
FLOATING = (0, 1, 3, 4)
ESTIMATORS = ("jensen", "logsumexp")
PAIRINGS = ("sub_batch", "symmetric", "leave_one_out")
REDUCTIONS = ("sum", "mean")


def mi_inputs(b=6, s=4, e=3, dtype=torch.float64, seed=0, offset=0.0, density=0.6, device=DEVICE):
    """(means, stds, mask, clean, noisy), the same numbers on every device. Position 0 is active in
    every row, and the smallest stds of both halves lie there, so that replacing values elsewhere
    never moves the stabiliser."""
    gen = torch.Generator().manual_seed(seed)
    shape = (b, s, e)
    clean = torch.randn(shape, generator=gen, dtype=torch.float64) + offset
    means = 0.3 * torch.randn(shape, generator=gen, dtype=torch.float64)
    stds = 0.5 + torch.rand(shape, generator=gen, dtype=torch.float64)
    noisy = clean + means + stds * torch.randn(shape, generator=gen, dtype=torch.float64)
    mask = torch.rand((b, s), generator=gen) < density
    if s and e:
        mask[:, 0] = True
        stds[:, 0, 0] = 0.4
    means, stds, clean, noisy = (t.to(device, dtype) for t in (means, stds, clean, noisy))
    return [means, stds, mask.to(device), clean, noisy]


def directions(pairing, rows):
    """Rows of the samples, and of the components, of each direction."""
    first, second = slice(0, rows // 2), slice(rows // 2, rows)
    if pairing == "leave_one_out":
        return [(slice(0, rows), slice(0, rows))]
    return [(first, second), (second, first)][: 2 if pairing == "symmetric" else 1]


def interpreted():
    """Whether Triton's interpreter serves these tensors: it takes minutes for what is large."""
    return DEVICE.type == "cpu" and os.environ.get("FUSED_MI_BACKEND") == "triton"


def leaves(inputs, dtype=None):
    """Fresh copies; the floating ones require a gradient."""
    out = []
    for t in inputs:
        floating = t.is_floating_point() and t.dim() == 3
        copy = t.detach().clone().to(dtype) if floating and dtype else t.detach().clone()
        out.append(copy.requires_grad_(floating))
    return out


def mi(inputs, combine=True, losses=None, **options):
    return fused_mi.mutual_information_sub_batch(*inputs, combine, losses, **options)


def gradients(value, inputs, **options):
    wanted = [t for t in inputs if t.requires_grad]
    return torch.autograd.grad(value, wanted, allow_unused=True, **options)


def value_and_gradients(function, inputs, dtype=None):
    """``function(list of leaves) -> scalar``; returns it detached, and one gradient per leaf."""
    fresh = leaves(inputs, dtype)
    value = function(fresh)
    return value.detach(), gradients(value, fresh)


def evaluate(function, inputs):
    """The same as one list."""
    value, grads = value_and_gradients(function, inputs)
    return [value, *grads]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def assert_same_bits(found, wanted):
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert same_bits(a, b), number


def mixtures(pairing, mask, component_mask=None, eps=1e-3):
    """The mixtures of a pairing, of components with `eps` and samples with twice as much."""
    from fused_mi._mixture import Mixture, directions  # here: other trees share the rest

    parts, pairs_of_parts = directions(pairing, len(mask))
    masks = mask, mask if component_mask is None else component_mask
    both_eps = [torch.tensor(e, device=mask.device) for e in (eps, 2 * eps)]
    return [
        Mixture(*masks, *both_eps, parts[i], parts[j], pairing == "leave_one_out")
        for i, j in pairs_of_parts
    ]


def scoring_of(mask, pairing, same_mask=True, own_stds=True):
    """The sum of a pairing over the samples, as operators take it."""
    from fused_mi._mixture import Scoring  # here: other trees share the rest

    return Scoring(
        mask,
        mask if same_mask else None,
        pairing=pairing,
        own_stds=own_stds,
        reduction="sum",
        safety_factor=100.0,
    )


def far_apart(tensor):
    """A copy (4, S, E) with rows 2^30 elements apart: the last ones begin beyond 2^31."""
    rows, positions, features = tensor.shape
    # Pages that are not touched cost nothing.
    storage = torch.empty(3 * 2**30 + positions * features, dtype=tensor.dtype)
    apart = storage.as_strided((rows, positions, features), (2**30, features, 1))
    return apart.copy_(tensor)


def assert_addresses_do_not_matter(inputs):
    """Neither value nor gradients depend on them, beyond 32 bits either."""
    apart = [far_apart(t) if i in FLOATING else t for i, t in enumerate(inputs)]
    found = []
    for given in (inputs, apart):
        wanted = [t.detach().requires_grad_(t.is_floating_point()) for t in given]
        value = mi(wanted)
        found.append([value, *gradients(value, wanted)])
    assert_same_bits(*found)


@contextlib.contextmanager
def fresh_memory_full_of_nan():
    """What is read before it is written becomes NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
