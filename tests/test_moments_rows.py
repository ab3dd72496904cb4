"""The loop over rows of the Triton kernels: its forms, its instructions and its arithmetic."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from cases import mi, mi_inputs, mixtures
from fused_mi import use_backend, warmup
from fused_mi.triton_kernels import _configs, _instructions, _moments_finish, _moments_rows, moments
from fused_mi.triton_kernels._launch import recorded
from rules import assert_rule10
from triton.runtime.interpreter import TensorHandle

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
pairing = pytest.mark.parametrize("pairing", ["sub_batch", "symmetric"])
combine = pytest.mark.parametrize("combine", [True, False])
INVERSE_ULPS = 2  # of `rcp.approx.ftz.f32`, with room
LOG2_ERROR = 2.0**-22  # of `lg2.approx.ftz.f32`: of 1 between 1/2 and 2, else of the logarithm


@pytest.fixture(autouse=True)
def _forced():
    with use_backend("triton"):
        yield


@pytest.fixture
def one_stream(monkeypatch):
    """Tiles of 4 rows x 4 features, so that few rows are many groups; no splits."""
    tile = _configs.MomentsTile(1, 4, 4, 1, 255)
    monkeypatch.setattr(moments, "moments_tiles", lambda *_, **__: [tile])
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 1)


def assert_loss(inputs, **options):
    assert_rule10(lambda t: mi(t, **options), inputs, options)


def approximate(monkeypatch, error, inverse=(), logarithm=()):
    """Replaces the instructions by exact ones with `error(shape)` in [-1, 1] of what is allowed; in
    more modules than those of the moments."""

    def handle(value, result):
        data = result.astype(np.float32)
        return tl.core.tensor(TensorHandle(data, value.handle.dtype), value.type)

    def reciprocal(value):
        with np.errstate(divide="ignore", invalid="ignore"):  # of 0 it is inf, as on a GPU
            exact = np.float32(1) / value.handle.data
            ulps = np.round(INVERSE_ULPS * error(exact.shape)) * np.spacing(exact)
        return handle(value, np.where(np.isfinite(ulps), exact + ulps, exact))

    def log2(value):
        data = value.handle.data.astype(np.float64)
        exact = np.log2(data)
        size = np.where((data >= 0.5) & (data <= 2), 1.0, np.abs(exact))
        return handle(value, exact + LOG2_ERROR * error(exact.shape) * size)

    for module in (_moments_rows, _moments_finish, *inverse):
        monkeypatch.setattr(module, "reciprocal", reciprocal)
    for module in (_moments_rows, *logarithm):
        monkeypatch.setattr(module, "log2", log2)


errors = {
    "random": lambda random: lambda shape: random.uniform(-1, 1, shape),
    "above": lambda random: lambda shape: np.ones(shape),
    "below": lambda random: lambda shape: -np.ones(shape),
}


@triton.jit
def _both(values, inverses, logs, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    value = tl.load(values + i)
    tl.store(inverses + i, _instructions.reciprocal(value))
    tl.store(logs + i, _instructions.log2(value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_portable_instructions_are_exact(dtype):
    values = torch.exp2(torch.linspace(-100, 100, 256, dtype=torch.float64)).to(dtype)
    inverses, logs = torch.empty_like(values), torch.empty_like(values)
    _both[(1,)](values, inverses, logs, COUNT=256)
    assert torch.equal(inverses, 1 / values)
    torch.testing.assert_close(logs, torch.log2(values), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pairing
@combine
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.usefixtures("one_stream")
def test_whole_groups_and_the_rest(pairing, combine, density, dtype):
    """Eleven rows of a role: two groups of which every row counts, where every row does, and three
    rows; six features: a whole tile and a half."""
    inputs = mi_inputs(22, 2, 6, dtype, seed=1, density=density)
    assert inputs[2].all() == (density == 1)
    assert_loss(inputs, pairing=pairing, combine=combine)


def spread(inputs, decades):
    """Their stds over so many decades."""
    inputs[1] *= 10 ** torch.linspace(-decades / 2, decades / 2, inputs[1].numel()).view_as(
        inputs[1]
    )
    return inputs


def shifted(inputs, index, offset):
    """One of the inputs, and the samples with it, moved by `offset`."""
    for i in (index, 4):
        inputs[i] = inputs[i] + offset
    return inputs


CASES = {
    "plain": lambda inputs: inputs,
    "x + 5e5": lambda inputs: shifted(inputs, 3, 5e5),
    "mu + 1000": lambda inputs: shifted(inputs, 0, 1e3),
    "x - 1000, mu + 1000": lambda inputs: [
        inputs[0] + 1e3,
        *inputs[1:3],
        inputs[3] - 1e3,
        inputs[4],
    ],
    "stds over 8 decades": lambda inputs: spread(inputs, 8),
    "equal stds": lambda inputs: [inputs[0], torch.full_like(inputs[1], 0.3), *inputs[2:]],
}
case = pytest.mark.parametrize("case", CASES)


@pairing
@case
@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.usefixtures("one_stream")
def test_offsets_and_weights(pairing, case, density):
    inputs = CASES[case](mi_inputs(128, 2, 5, torch.float32, seed=2, density=density))
    assert_loss(inputs, pairing=pairing)


@pairing
@case
@pytest.mark.parametrize("error", errors)
@pytest.mark.usefixtures("one_stream")
def test_approximate_instructions(monkeypatch, pairing, case, error):
    """As inexact as the PTX manual allows."""
    approximate(monkeypatch, errors[error](np.random.default_rng(0)))
    for density in (0.6, 1.0):
        inputs = CASES[case](mi_inputs(24, 2, 5, torch.float32, seed=3, density=density))
        assert_loss(inputs, pairing=pairing)


@pytest.mark.parametrize("rows", [1000, 2100])
def test_many_rows_of_one_variance(rows):
    """Whose sum is rounded in the same direction by every addition."""
    inputs = CASES["equal stds"](mi_inputs(rows, 1, 2, torch.float32, seed=4, density=1.0))
    assert_loss(inputs)


@pytest.mark.parametrize("combine", [True, False])
def test_rows_in_both_roles_are_read_in_one_launch(combine):
    inputs = mi_inputs(16, 2, 5, torch.float32)
    with recorded() as launches:
        mi(inputs, combine, pairing="symmetric")
    found = [la for la in launches if la.kernel.__name__ == "accumulate_kernel"]
    assert [la.meta["SHARED"] for la in found] == [combine]


def test_two_mixtures_that_share_no_rows():
    """One by one: mixtures of an operator, not of a loss."""
    means, stds, mask, clean, noisy = mi_inputs(8, 2, 5, seed=5)
    (first,) = mixtures("sub_batch", mask[:4])
    other = first._replace(sample_rows=(4, 6), component_rows=(6, 8))
    masks = {"sample_mask": mask, "component_mask": mask}
    given = [first._replace(**masks), other._replace(**masks)]
    sums, state = moments.moments(noisy, clean, means, stds, given)
    for d, mixture in enumerate(given):
        alone, of_alone = moments.moments(noisy, clean, means, stds, [mixture])
        assert torch.equal(sums[d], alone[0]) and torch.equal(state[d], of_alone[0])


@pairing
def test_nothing_depends_on_the_batch(pairing):
    """`warmup` compiles what any batch needs."""
    names = ("accumulate_kernel", "finish_kernel", "sums_of_pairs_kernel", "reduce_kernel")

    def compiled(run):
        with recorded() as launches:
            run()
        found = [la for la in launches if la.kernel.__name__ in names]
        return {(la.kernel.__name__, tuple(la.meta.items()), *la.named()) for la in found}

    first = compiled(lambda: warmup(2, 1024, device="cpu", pairing=pairing))
    assert {name for name, *_ in first} == set(names)
    for batch in (4, 10, 64, 4096):
        inputs = [t.expand(batch, *t.shape[1:]) for t in mi_inputs(1, 2, 1024, torch.float32)]
        assert compiled(lambda inputs=inputs: mi(inputs, pairing=pairing)) <= first
