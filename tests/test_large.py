"""Large inputs, more than 2^31 elements among them: a sample of the gradients; small ones on a CPU.
Each in a process of its own on a GPU, which an illegal access takes down."""

import large
import pytest
import torch
from blocks import module
from cases import DEVICE, FLOATING, mi_inputs
from fused_mi._mixture import Mixture
from fused_mi.reference import pairs as reference
from large import as_memory_allows, assert_sample, large_inputs, sampled
from pair_rules import scales

pytestmark = [pytest.mark.every_device, pytest.mark.own_process]
BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
ON_GPU = DEVICE.type == "cuda"
JENSEN = [
    ((512, 128, 768), F32, "sub_batch"),
    ((64, 512, 4096), F32, "sub_batch"),
    ((64, 512, 4096), BF16, "symmetric"),
    ((64, 512, 4096), BF16, "leave_one_out"),
    ((4096, 16, 768), F32, "sub_batch"),
    # Offsets of rows past 2^31 elements; then those of a state (4, S, E) as well.
    ((64, 4096, 8208), BF16, "sub_batch"),
    ((4, 67072, 8208), BF16, "sub_batch"),
]
PAIRS = [
    ((512, 16, 768), F32),
    ((330, 40, 1000), BF16),
    ((64, 512, 4096), F32),
    # The same, and those of a position past 2^31 elements.
    ((64, 4096, 8208), BF16),
    ((4, 67072, 8208), BF16),
]
SMALL = (10, 5, 30)
BLOCK = 1 << 9  # positions of a float64 copy


@pytest.fixture
def _small_sample(monkeypatch):
    if not ON_GPU:
        monkeypatch.setattr("large.PAIR_ELEMENTS", 800)


@pytest.mark.usefixtures("_small_sample")
@pytest.mark.parametrize(
    ("shape", "dtype", "pairing"), JENSEN if ON_GPU else [(SMALL, F32, "symmetric")], ids=str
)
def test_jensen(shape, dtype, pairing):
    with as_memory_allows():
        assert_sample(large_inputs(shape, dtype), pairing=pairing)


@pytest.mark.usefixtures("_small_sample")
@pytest.mark.parametrize(("shape", "dtype"), PAIRS if ON_GPU else [(SMALL, F32)], ids=str)
def test_pairs(shape, dtype):
    with as_memory_allows():
        assert_pairs(large_inputs(shape, dtype), torch.tensor(1e-4, device=DEVICE))


@pytest.mark.parametrize("size", [1e-20, 1e-15, 1e15, 1e19])
def test_pairs_of_scaled_inputs(size):
    """Variances out of the range of float32."""
    inputs = mi_inputs(6, 4, 5, dtype=F32)
    for i in FLOATING:
        inputs[i] *= size
    assert_pairs(inputs, torch.tensor(1e-5 * size**2, dtype=F64, device=DEVICE).float())


@pytest.mark.skipif(ON_GPU, reason="it is about the check")
@pytest.mark.usefixtures("_small_sample")
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 1e-2])
def test_a_wrong_element_is_found(monkeypatch, wrong):
    def spoil(owner, name):
        original = getattr(owner, name)

        def spoiled(*arguments):
            found = [t.clone() for t in original(*arguments)]
            found[-1][-1, -1, -1] += wrong
            return found

        monkeypatch.setattr(owner, name, spoiled)

    spoil(module("pairs"), "pairs_backward")
    with pytest.raises(AssertionError, match="gradient of stds"):
        assert_pairs(large_inputs(SMALL, F32), torch.tensor(1e-4))
    spoil(large, "gradients")
    with pytest.raises(AssertionError, match="noisy"):
        assert_sample(large_inputs(SMALL, F32))


def assert_pairs(inputs, eps):
    """Energies as the plain implementation has them in float64; and a sample of the gradients of a
    random upstream gradient."""
    means, stds, mask, clean, noisy = inputs
    N, (B, S, E) = len(mask) // 2, clean.shape
    mixture = Mixture(mask, mask, eps, 2 * eps, (0, N), (N, B))
    tensors = noisy, clean, means, stds
    found = module("pairs").pairs(*tensors, [mixture])[0]
    want = torch.zeros_like(found)
    for s in range(0, S, BLOCK):  # in float64, but never all of them
        part = mask[:, s : s + BLOCK]
        block = (t[:, s : s + BLOCK].double() for t in tensors)
        want += reference.pairs(*block, [mixture._replace(sample_mask=part, component_mask=part)])[
            0
        ]
    relative = 8 * torch.finfo(F32).eps
    assert_within("q", found[0] - want[0], relative * want[0])
    assert_within("g and k", found[1:] - want[1:], relative * (want[1:].abs() + 2 * S * E))

    upstream = torch.randn(1, 3, N, B - N, dtype=F64)
    pull = module("pairs").pairs_backward
    gradients = pull(upstream.to(DEVICE), *tensors, None, [mixture], [True] * 4)
    ours, sample, (masks,) = sampled((gradients, tensors, (mask,)), S, E, N * (B - N))
    on_host = Mixture(masks, masks, eps.cpu(), 2 * eps.cpu(), (0, N), (N, B))
    sample = [t.double() for t in sample]
    true = reference.pairs_backward(upstream, *sample, None, [on_host], [True] * 4)
    _, *sizes = scales(sample, [on_host], upstream)
    for name, a, b, size in zip(
        ("noisy", "clean", "means", "stds"), ours, true, sizes, strict=True
    ):
        bound = relative * size + torch.finfo(a.dtype).eps * b.abs()
        assert_within(f"gradient of {name}", a.double() - b, bound)


def assert_within(what, difference, bound):
    excess = (difference.abs() - bound).max().item()
    assert excess <= 0, f"{what}: exceeds the bound by {excess:.3e}"
