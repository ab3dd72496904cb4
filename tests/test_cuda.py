"""The compiled CUDA kernels, emulated on CPU tensors: when they serve, and what `every_backend`
does not try."""

import fused_mi
import pytest
import torch
from cases import assert_same_bits, evaluate, mi, mi_inputs
from fused_mi.cuda import _library
from fused_mi.ops import _backends

EMULATED = _library.EMULATED.exists()
needs_emulator = pytest.mark.skipif(not EMULATED, reason="FUSED_MI_BUILD_EMULATED was not 1")
pytestmark = pytest.mark.usefixtures("unforced")


@pytest.fixture
def _emulated(monkeypatch):
    monkeypatch.setenv(_library.VARIABLE, "1")
    _backends._choose.cache_clear()
    with fused_mi.use_backend("cuda"):
        yield


@needs_emulator
def test_it_never_serves_by_itself(monkeypatch):
    monkeypatch.setenv(_library.VARIABLE, "1")
    (cuda,) = (b for b in fused_mi.backends() if b.name == "cuda")
    assert cuda == ("cuda", True, "emulator (FUSED_MI_EMULATE_CUDA), CPU tensors")
    assert "cuda" not in {choice.backend for choice in fused_mi.explain(torch.ones(1))}
    with fused_mi.use_backend("cuda"):
        assert {choice.backend for choice in fused_mi.explain(torch.ones(1))} == {"cuda"}


def test_what_it_does_not_serve_raises(monkeypatch):
    monkeypatch.delenv(_library.VARIABLE, raising=False)
    with fused_mi.use_backend("cuda"):
        with pytest.raises(RuntimeError, match=r"'cuda' was forced .* jensen: .* in its emulator"):
            mi(mi_inputs())
        with pytest.raises(RuntimeError, match="it does not serve meta tensors"):
            fused_mi.explain(torch.ones(1, device="meta"))


def test_the_library_is_not_asked_without_a_gpu(monkeypatch):
    monkeypatch.delenv(_library.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _library._usable.cache_clear()
    assert _library.usable() == (False, "no GPU that torch can use")
    _library._usable.cache_clear()


def test_a_library_that_does_not_load_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv(_library.VARIABLE, "1")
    for text, reason in ((None, "was not built"), (b"", "does not load")):
        file = tmp_path / "library.so"
        if text is not None:
            file.write_bytes(text)
        monkeypatch.setattr(_library, "EMULATED", file)
        _library._usable.cache_clear()
        works, said = _library.usable()
        assert not works
        assert reason in said
    _library._usable.cache_clear()


@needs_emulator
@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("estimator", ["jensen", "logsumexp"])
@pytest.mark.parametrize("pairing", ["sub_batch", "symmetric", "leave_one_out"])
def test_repeated_runs_agree_in_every_bit(estimator, pairing):
    inputs = mi_inputs(70, 2, 68, dtype=torch.float32)

    def run():
        return evaluate(lambda t: mi(t, estimator=estimator, pairing=pairing), inputs)

    assert_same_bits(run(), run())


@needs_emulator
@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("estimator", ["jensen", "logsumexp"])
@pytest.mark.parametrize("pairing", ["sub_batch", "leave_one_out"])
def test_addresses_beyond_2_to_the_31_elements(estimator, pairing):
    """Rows that lie so far apart, in memory of which the pages between are never touched."""
    inputs = mi_inputs(4, 2, 12, dtype=torch.bfloat16)
    apart = [_far_apart(t) if t.dim() == 3 else t for t in inputs]

    def run(tensors):
        found = mi(tensors, estimator=estimator, pairing=pairing)
        leaves = [t for t in tensors if t.requires_grad]
        return [found.detach(), *torch.autograd.grad(found, leaves)]

    leaves = [t.detach().requires_grad_(t.dim() == 3) for t in apart]
    assert leaves[0].stride(0) * 3 > 1 << 31
    dense = [t.detach().clone().requires_grad_(t.dim() == 3) for t in inputs]
    assert_same_bits(run(leaves), run(dense))


def _far_apart(t):
    rows, positions, features = t.shape
    stride = (1 << 30) + 16
    try:
        memory = torch.empty((rows - 1) * stride + positions * features, dtype=t.dtype)
    except RuntimeError as error:  # of a system that promises no more memory than it has
        pytest.skip(str(error).splitlines()[0])
    found = memory.as_strided(t.shape, (stride, features, 1))
    return found.copy_(t)


@needs_emulator
@pytest.mark.usefixtures("_emulated")
def test_wrong_arguments_are_refused():
    _, stds, mask, *_ = mi_inputs(dtype=torch.float32)
    raw = _library.operators()
    eps, bounds = torch.empty(1), (1.0, 0.0, 1e30)
    with pytest.raises(RuntimeError, match="no such rows"):
        raw.variance(stds, mask, mask, [0, 0, 9], *bounds, eps)
    with pytest.raises(RuntimeError, match="unsupported dtype"):
        raw.variance(stds.long(), mask, mask, [0, 0, 3], *bounds, eps)
    with pytest.raises(RuntimeError, match="expected a bool"):
        raw.variance(stds, mask.float(), mask, [0, 0, 3], *bounds, eps)
    with pytest.raises(RuntimeError, match="eps: expected a contiguous tensor of 1 elements"):
        raw.variance(stds, mask, mask, [0, 0, 3], *bounds, torch.empty(2))
