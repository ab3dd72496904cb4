"""What Triton would compile, by the keys of its own launches for an H100: nothing after `warmup`.

The kernels are specialised by types, constants, and the alignment of tensors. Of at least 256
features there are two variants, of multiples of 8 and of others, which have no loads of 128 bits;
fewer have tiles of their own.
"""

import functools
import inspect

import fused_mi
import pytest
import torch
from cases import PAIRINGS
from fused_mi import use_backend, warmup
from fused_mi._building_blocks import Partners
from fused_mi._mixture import Scoring, mixtures_of
from fused_mi._precision import accumulation_dtype
from fused_mi.ranks._layout import Layout
from fused_mi.triton_kernels import _configs, parts
from fused_mi.triton_kernels._launch import recorded
from marks import dtypes
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

POSITIONS = 3
FEATURES = (256, 384, 768, 1000, 1024, 4096, 8192)
UNALIGNED = (257, 1001, 1004, 4098)  # no multiples of 8
SAFETY_FACTORS = (0.0, 1.0, 2.0, 100.0, 1e30)
BATCHES = (2, *range(6, 24, 2), 30, 32, 48, 64, 100, 128, 250, 256, 512, 1000, 2048, 4096)
MOST = 12  # kernels of one warmup; 10 of "leave_one_out"
DTYPES = (torch.float32, torch.bfloat16, torch.float64)

pairing = pytest.mark.parametrize("pairing", PAIRINGS)
dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _as_on_an_h100(monkeypatch):
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 4 * 132)
    monkeypatch.setattr(_configs, "warps_of", lambda device: 4)
    with use_backend("triton"):
        yield


@functools.cache
def _binder(kernel):
    """Triton's own function from arguments to specialisation."""
    options = {name: value for name, value in kernel.kwargs.items() if value is not None}
    compiled = JITFunction(kernel.fn, **options)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    return create_function_from_signature(compiled.signature, compiled.params, backend)


def keys(launches):
    """One for each kernel that the launches need."""
    found = set()
    for kernel, _, arguments, meta in launches:
        _, specialisation, options = _binder(kernel)(*arguments, **meta)
        found.add((kernel.__name__, str(specialisation), str(options)))
    return found


def of_warmup(features, dtype, positions=POSITIONS, **options):
    with recorded() as launches:
        warmup(positions, features, device="cpu", dtype=dtype, **options)
    return keys(launches)


def of_call(batch, features, dtype, positions=POSITIONS, **options):
    """Of the loss and of its gradients, of tensors without data."""
    shape = batch, positions, features
    means, stds, clean, noisy = leaves = [
        torch.empty(shape, dtype=dtype).requires_grad_() for _ in range(4)
    ]
    mask = torch.ones(shape[:2], dtype=torch.bool)
    with recorded() as launches:
        loss = fused_mi.mutual_information_sub_batch(means, stds, mask, clean, noisy, **options)
        torch.autograd.grad(loss, leaves)
    return keys(launches)


def describe(new, known):
    """What is different about the keys of a failure."""
    lines = []
    for name, *of_new in sorted(new):
        lines += [f"{name}: {part}" for part in of_new]
        lines += [f"   known: {of_known}" for other, *of_known in sorted(known) if other == name]
    return "\n".join(lines)


def test_the_keys_are_those_of_triton():
    """A size that is specialised makes a key; one that is not makes none; an alignment does."""
    assert len(BATCHES) == 22 and len(SAFETY_FACTORS) == 5 and len(FEATURES) == 7
    one, other = (of_call(8, e, torch.float32) for e in (256, 250))
    assert one & other == set() or one != other
    assert inspect.isfunction(_binder(_kernel("reduce_kernel")))


def _kernel(name):
    from fused_mi.triton_kernels import _terms

    return getattr(_terms, name)


@pairing
@dtype
def test_no_batch_size_compiles_after_a_warmup(pairing, dtype):
    known = of_warmup(1024, dtype, pairing=pairing)
    assert len(known) <= MOST, describe(known, ())
    for batch in BATCHES:
        new = of_call(batch, 1024, dtype, pairing=pairing) - known
        assert not new, f"{batch}:\n{describe(new, known)}"


@pairing
@dtype
def test_no_feature_size_compiles_after_a_warmup(pairing, dtype):
    for sizes in (FEATURES, UNALIGNED):
        known = of_warmup(sizes[2], dtype, pairing=pairing)
        for features in sizes:
            for batch in (8, 100):
                new = of_call(batch, features, dtype, pairing=pairing) - known
                assert not new, f"{features}:\n{describe(new, known)}"


@pairing
def test_no_number_of_positions_compiles_after_a_warmup(pairing):
    """Of at least 17; fewer have tiles of their own."""
    for features in (1000, 1001):
        known = of_warmup(features, torch.float32, positions=17, pairing=pairing)
        for positions in (32, 33, 48, 500, 1024):
            new = of_call(8, features, torch.float32, positions=positions, pairing=pairing) - known
            assert not new, f"{positions}:\n{describe(new, known)}"


@pairing
def test_no_safety_factor_compiles_after_a_warmup(pairing):
    known = of_warmup(1024, torch.float32, pairing=pairing)
    for factor in SAFETY_FACTORS:
        new = of_call(8, 1024, torch.float32, pairing=pairing, safety_factor=factor) - known
        assert not new, f"{factor}:\n{describe(new, known)}"


def of_rank(rank, sizes, features, dtype, pairing, wanted=(True,) * 4):
    """Of one of several ranks: what it tells, merges, and writes."""
    layout = Layout.of(rank, [(n, n) for n in sizes], pairing)
    shape = sizes[rank], POSITIONS, features
    inputs = [torch.empty(shape, dtype=dtype) for _ in range(4)]
    mask = torch.ones(shape[:2], dtype=torch.bool)
    scoring = Scoring(mask, mask, pairing=pairing, own_stds=True)
    T = accumulation_dtype(*inputs)

    def eps(_, roles, *__):
        return [torch.empty(8)[i].to(T) for i in range(len(roles))]

    given = mixtures_of(scoring, inputs, eps, layout.local(rank))
    partners = [Partners(*torch.ones((2, POSITIONS), dtype=torch.int32)) for _ in given]
    kept = [Partners(*(t.double() for t in p)) for p in partners]
    in_float64 = [
        m._replace(component_eps=m.component_eps.double(), sample_eps=m.sample_eps.double())
        for m in given
    ]
    with recorded() as launches:
        for told in (T, torch.float64):
            found = parts.parts(*inputs, given, partners, told)
            sets = found.planes.flatten(2)[:, None].expand(-1, len(sizes), -1, -1)
            counts = found.counts[:, None].expand(-1, len(sizes), -1).long()
            parts.merge(sets, counts, features, 0, pairing == "leave_one_out")
        planes = found.planes.double()
        parts.pull(found.sums, *inputs, in_float64, kept, planes, wanted)
        parts.pull(found.sums, *inputs, given, partners, planes, wanted)
    return keys(launches)


@pairing
@dtype
def test_no_rank_compiles_after_a_warmup(pairing, dtype):
    """Whatever rows of the batch it has."""
    known = of_warmup(1024, dtype, pairing=pairing, ranks=True)
    for sizes in ((4, 4), (64, 64), (3, 10, 3), (2000, 2000)):
        for rank in range(len(sizes)):
            new = of_rank(rank, sizes, 1024, dtype, pairing) - known
            assert not new, f"{rank} of {sizes}:\n{describe(new, known)}"


def test_a_warmup_of_ranks_is_one_of_jensen():
    with pytest.raises(ValueError, match="ranks: expected False"):
        warmup(2, 8, device="cpu", estimator="logsumexp", ranks=True)


def of_tokens(samples, tokens, features, dtype, leave_own_out):
    noisy, centers, stds = leaves = [
        torch.empty((rows, features), dtype=dtype).requires_grad_()
        for rows in (samples, tokens, tokens)
    ]
    own, weights = torch.zeros(samples, dtype=torch.int64), torch.zeros(tokens)
    with recorded() as launches:
        value = fused_mi.token_information(
            noisy, own, centers, stds, weights, leave_own_out=leave_own_out
        )
        torch.autograd.grad(value, leaves)
    return keys(launches)


@dtypes(torch.float32, torch.bfloat16)
@pytest.mark.parametrize("leave_own_out", [False, True])
def test_no_number_of_tokens_compiles_after_a_warmup(leave_own_out, dtype):
    """Of a vocabulary, as long as no role has so many rows that gradients add up in float32."""
    with recorded() as launches:
        warmup(1, 64, device="cpu", dtype=dtype, batch=1024, tokens=1000)
    known = keys(launches)
    assert "online_kernel" in {name for name, *_ in known}
    for samples, tokens in ((1024, 1001), (1000, 3000), (600, 900), (2000, 1000)):
        new = of_tokens(samples, tokens, 64, dtype, leave_own_out) - known
        assert not new, f"{samples}, {tokens}:\n{describe(new, known)}"


def test_tokens_have_one_position():
    with pytest.raises(ValueError, match="positions: expected 1, as tokens were given, got 2"):
        warmup(2, 8, device="cpu", tokens=5)
