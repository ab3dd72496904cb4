"""The Triton kernels themselves, in the interpreter: what the public functions do not show."""

import json

import numpy as np
import pytest
import torch
from cases import (
    assert_addresses_do_not_matter,
    assert_same_bits,
    evaluate,
    fresh_memory_full_of_nan,
    gradients,
    leaves,
    mi,
    mi_inputs,
    mixtures,
)
from fused_mi import use_backend, warmup
from fused_mi._mixture import Mixture
from fused_mi._passes import passes
from fused_mi.reference import moments as reference
from fused_mi.reference.rows import first_active_row
from fused_mi.triton_kernels import _configs, _launch, _tune, moments
from marks import dtypes, pairing
from rules import assert_rule10
from triton.runtime.interpreter import ReduceOps

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
GPU = torch.device("cuda")


@pytest.fixture
def _gpu(monkeypatch):
    """What the tuning asks of a GPU."""
    monkeypatch.setattr(_tune, "_machine", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture(autouse=True)
def _forced():
    with use_backend("triton"):
        yield


@pairing
@dtypes(torch.float32, torch.float64)
def test_sums_and_state_are_those_of_the_plain_path(pairing, dtype):
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=3, e=5, dtype=dtype, seed=1)
    mask[:, 2] = False
    arguments = noisy, clean, means, stds, mixtures(pairing, mask)
    sums, state = moments.moments(*arguments)
    plain_sums, plain_state = reference.moments(*arguments)
    # Here components are measured from x + mu of the first row.
    for of_mixture, mixture in zip(plain_state, arguments[-1], strict=True):
        rows, here = slice(*mixture.component_rows), mixture.contributing()[1]
        of_mixture[2] -= first_active_row(means[rows], here)
        if pairing == "leave_one_out":  # and so are the samples
            centres = first_active_row((clean + means)[rows], here)
            of_mixture[0] += first_active_row(noisy[rows], here) - centres
    lost = state.isnan()
    assert not lost.any()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    # Plain torch goes by pairs as a whole.
    assert pairing == "leave_one_out" or not plain_state.isnan().any()
    kept = torch.where(lost | plain_state.isnan(), plain_state, state)
    for ours, plain in ((sums, plain_sums), (kept, plain_state)):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance, equal_nan=True)


@pairing
@pytest.mark.parametrize("upstream", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, -2.0, 5.0)])
def test_each_sum_has_a_gradient_of_its_own(pairing, upstream):
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=3, e=5, seed=2)
    given = mixtures(pairing, mask)
    tensors = noisy, clean, means, stds
    _, state = moments.moments(*tensors, given)
    pull = torch.tensor(upstream, dtype=torch.float64).expand(len(given), 3)
    for wanted in ([True] * 4, [False, True, False, True]):
        ours = moments.moments_backward(pull, *tensors, state, given, wanted)
        plain = reference.moments_backward(pull, *tensors, None, given, wanted)
        for a, b, needed in zip(ours, plain, wanted, strict=True):
            assert (a is not None) == needed
            if needed:
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pairing
@pytest.mark.parametrize("e", [1, 5, 40])
def test_batches_that_are_split_over_programs(monkeypatch, pairing, e):
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 10**6)
    monkeypatch.setattr(_configs, "_MIN_ITERATIONS", 1)
    monkeypatch.setattr(_configs, "_MIN_GROUPS", 1)
    inputs = mi_inputs(b=1200 if e == 1 else 150, s=1, e=e, dtype=torch.float32, seed=3)
    with _launch.recorded() as launches:
        means, stds, mask, clean, noisy = inputs
        moments.moments(noisy, clean, means, stds, mixtures(pairing, mask))
    names = "accumulate_kernel", "leave_one_out_kernel"
    assert max(la.programs for la in launches if la.kernel.__name__ in names) > 1
    assert_rule10(lambda t: mi(t, pairing=pairing), inputs, {"pairing": pairing})


@pairing
@dtypes(torch.float32, torch.bfloat16)
def test_memory_is_written_before_it_is_read(pairing, dtype):
    """Fresh memory full of NaN changes nothing."""
    inputs = mi_inputs(b=6, s=3, e=5, dtype=dtype, seed=4)
    inputs[2][:, 1] = False
    plain = evaluate(lambda t: mi(t, pairing=pairing), inputs)
    with fresh_memory_full_of_nan():
        again = evaluate(lambda t: mi(t, pairing=pairing), inputs)
    assert_same_bits(again, plain)
    assert not any(t.isnan().any() for t in again)


@pytest.mark.parametrize("features", [256, 1000, 4096])
@dtypes(torch.float32, torch.bfloat16)
def test_warps_of_64_lanes_have_as_much_for_each_thread(monkeypatch, features, dtype):
    x = torch.empty((1, 1, features), dtype=dtype)
    monkeypatch.setattr(_configs, "warps_of", lambda device: 4)

    def shares(lanes):
        monkeypatch.setattr(_configs, "lanes", lambda: lanes)
        tiles = _configs.moments_tiles(features, x, both=True)[0], _configs.few_tile(features, x)
        for tile in (*tiles, _configs.features_tile(features, x)):
            meta = _launch.for_amd(tile._asdict(), lanes)
            assert "maxnreg" not in meta
            yield meta.get("ROWS", 1) * meta["FEATURES"] / (lanes * meta["num_warps"])

    assert list(shares(64)) == list(shares(32))


@pairing
def test_tiles_for_warps_of_64_lanes(monkeypatch, pairing):
    monkeypatch.setattr(_configs, "lanes", lambda: 64)
    inputs = mi_inputs(b=8, s=1, e=200, dtype=torch.float32, seed=6)
    assert_rule10(lambda t: mi(t, pairing=pairing), inputs, {"pairing": pairing})


def test_addresses_beyond_32_bits():
    """Rows 2^30 elements apart: the last ones begin beyond 2^31."""
    inputs = mi_inputs(b=4, s=2, e=3, dtype=torch.float16, seed=5)
    assert_addresses_do_not_matter(inputs)


@pairing
def test_second_derivatives_take_the_plain_formula(pairing):
    inputs = leaves(mi_inputs(b=4, s=2, e=2, seed=6))
    second = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            first = gradients(mi(inputs, pairing=pairing), inputs, create_graph=True)
            second.append(gradients(sum(g.square().sum() for g in first), inputs))
    for ours, plain in zip(*second, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


@pairing
@pytest.mark.parametrize("rows", [6, 40])
def test_reductions_do_not_depend_on_their_order(monkeypatch, pairing, rows):
    """Lanes of a GPU that share what is reduced each do it in an order of their own, and one of
    them is taken at its word."""
    reduce, seen = ReduceOps.generic_reduce, []

    def both_ways(self, arguments):
        there = reduce(self, arguments)
        back = [self.to_tensor(np.flip(a.handle.data, self.axis), a.dtype) for a in arguments]
        for a, b in zip(there, reduce(self, tuple(back)), strict=True):
            np.testing.assert_allclose(a.handle.data, b.handle.data, rtol=1e-4, atol=1e-4)
        seen.append(self)
        return there

    monkeypatch.setattr(ReduceOps, "generic_reduce", both_ways)
    inputs = leaves(mi_inputs(rows, 2, 3, torch.float32, density=0.7))
    mi(inputs, pairing=pairing).backward()
    assert seen


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_loss_calls_the_kernels():
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: mi(t), backend="aot_eager", fullgraph=True)
    inputs = mi_inputs(dtype=torch.float32, seed=7)
    value, *grads = evaluate(lambda t: compiled(*t), inputs)
    plain, *plain_grads = evaluate(mi, inputs)
    torch.testing.assert_close(value, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(grads, plain_grads, rtol=1e-6, atol=1e-7)


def test_warmup_launches_every_kernel():
    with _launch.recorded() as launches:
        warmup(3, 5, device="cpu", gradients=("stds",))
    names = {launch.kernel.__name__ for launch in launches}
    assert names == {
        *("prepare_kernel", "settle_kernel"),
        *("accumulate_kernel", "finish_kernel", "sums_of_pairs_kernel", "reduce_kernel"),
        *("gradient_kernel", "gradient_of_pairs_kernel"),
        *("one_group_kernel", "one_group_gradient_kernel"),
    }
    with _launch.recorded() as launches:
        warmup(3, 5, device="cpu", estimator="logsumexp", batch=6)
    names = {launch.kernel.__name__ for launch in launches}
    assert {"distances_kernel", "samples_gradient_kernel", "components_gradient_kernel"} <= names
    with pytest.raises(ValueError, match="gradients: expected names"):
        warmup(3, 5, device="cpu", gradients=("sigma",))


@pytest.mark.parametrize(
    ("ranges", "own"),
    [
        ([((0, 4), (2, 6))], True),  # overlap in part
        ([((0, 3), (3, 6)), ((0, 3), (3, 6))], True),  # twice the same role
    ],
)
def test_rows_that_no_pass_can_serve_are_refused(ranges, own):
    mask, eps = torch.ones(6, 1, dtype=torch.bool), torch.tensor(1.0)
    given = [Mixture(mask, mask, eps, eps if own else None, *rows) for rows in ranges]
    with pytest.raises(NotImplementedError):
        passes(given)


def test_rows_outside_of_every_range_have_zero_gradients():
    means, stds, mask, clean, noisy = mi_inputs(b=8, s=2, e=3, seed=8)
    eps = torch.tensor(1e-3)
    given = [Mixture(mask, mask, eps, eps, (1, 3), (4, 7))]
    tensors = noisy, clean, means, stds
    _, state = moments.moments(*tensors, given)
    pull = torch.ones(1, 3, dtype=torch.float64)
    ours = moments.moments_backward(pull, *tensors, state, given, [True] * 4)
    plain = reference.moments_backward(pull, *tensors, None, given, [True] * 4)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("_gpu")
def test_tuning_measures_once_and_keeps_the_fastest(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSED_MI_AUTOTUNE", "1")
    monkeypatch.setenv("FUSED_MI_CACHE_DIR", str(tmp_path / "new"))
    _tune._load.cache_clear()
    measured = []

    def do_bench(run, **_):
        measured.append(run)
        run()
        return {1: 3.0, 2: 1.0}.get(len(measured), 2.0)

    monkeypatch.setattr(_tune, "do_bench", do_bench)
    tensor = torch.ones(4, 2, 300)
    tiles = _configs.candidates(300, tensor)
    assert len(tiles) > 2
    run = []
    for _ in range(2):
        found = _tune.best(("a", 1), tiles, run.append, GPU)
        assert found == tiles[1]
    assert len(measured) == len(run) == len(tiles)
    _tune._load.cache_clear()  # as in a new process
    assert _tune.best(("a", 1), tiles, run.append, GPU) == tiles[1]
    assert len(run) == len(tiles)
    assert list(json.loads(_tune.cache_file().read_text()).values()) == [list(tiles[1])]
    inputs = mi_inputs(b=4, s=1, e=3, dtype=torch.float32)
    assert_rule10(mi, inputs)


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("content", ["", "not json"])
def test_a_cache_that_cannot_be_read_or_written_costs_only_a_search(monkeypatch, tmp_path, content):
    file = tmp_path / "file"
    file.write_text(content)
    monkeypatch.setenv("FUSED_MI_AUTOTUNE", "1")
    monkeypatch.setenv("FUSED_MI_CACHE_DIR", str(file if not content else tmp_path))
    (tmp_path / "tiles.json").write_text(content)
    _tune._load.cache_clear()
    monkeypatch.setattr(_tune, "do_bench", lambda run, **_: 1.0)
    tiles = _configs.candidates(300, torch.ones(1))
    assert _tune.best(("b",), tiles, lambda tile: None, GPU) == tiles[0]


@pytest.mark.parametrize("e", [1, 3, 64, 127, 4097])
@dtypes(torch.float32, torch.bfloat16, torch.float64)
def test_every_candidate_is_a_power_of_two_and_not_wider_than_the_features(e, dtype):
    for tile in _configs.candidates(e, torch.ones(1, dtype=dtype)):
        assert tile.ROWS & (tile.ROWS - 1) == 0
        assert tile.FEATURES & (tile.FEATURES - 1) == 0
        assert 2 * e > tile.FEATURES or tile.FEATURES == 1


@pytest.mark.parametrize("rows", [1, 7, 512, 65536])
@pytest.mark.parametrize("programs", [1, 100, 10**6])
def test_splits_cover_every_row_once(rows, programs):
    count, per_split = _configs.splits(rows, programs, 4, torch.device("cpu"))
    assert (count - 1) * per_split < rows <= count * per_split
    assert per_split % 4 == 0
