"""What the kernels of the pairs move, counted in the interpreter, beside the model of it."""

import pytest
import torch
from fused_mi._building_blocks import Own
from fused_mi._mixture import Mixture
from fused_mi.triton_kernels import _configs, _pairs_configs, logsumexp, online, pairs
from fused_mi.triton_kernels._launch import launch, recorded
from fused_mi.triton_kernels._traffic import counted, expected, total
from pair_rules import pair_case
from test_traffic import ALL, NAMES, assert_modelled, run


def case(n, m, s, e, dtype=torch.float32, exclude=False):
    """The last position has no active row, a tile of samples none at the first."""
    inputs, mixture = pair_case((n, m, s, e), dtype, seed=1)
    if exclude:
        inputs, masks = [t[:n] for t in inputs], mixture.sample_mask[:n]
        mixture = Mixture(masks, masks, *mixture[2:4], (0, n), (0, n), True)
    mask = mixture.sample_mask
    mask[:, -1], mask[64:n, 0] = False, False
    return inputs, mixture


def without_data(inputs, mixture):
    changed = {name: t.to("meta") for name, t in mixture._asdict().items() if torch.is_tensor(t)}
    return [t.to("meta") for t in inputs], mixture._replace(**changed)


def record_pairs(inputs, mixture, wanted=ALL):
    with recorded() as forward:
        energies = pairs.pairs(*inputs, [mixture])
    with recorded() as backward:
        upstream = torch.ones_like(energies)
        gradients = pairs.pairs_backward(upstream, *inputs, None, [mixture], wanted)
    return forward, backward, gradients


PAIRS = {"one tile": (5, 4, 3, 7), "many": (70, 40, 2, 9), "features": (5, 4, 2, 70)}


@pytest.mark.parametrize("exclude", [False, True], ids=["one role", "both roles"])
@pytest.mark.parametrize("shape", PAIRS.values(), ids=PAIRS)
def test_model_of_the_pairs(shape, exclude):
    inputs, mixture = case(*shape, exclude=exclude)
    forward, backward, _ = record_pairs(inputs, mixture)
    assert_modelled(forward)
    assert_modelled(backward)


@pytest.mark.parametrize("wanted", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1)], ids=str)
def test_model_of_one_gradient_of_the_pairs(wanted):
    inputs, mixture = case(5, 4, 2, 7, torch.float16)
    forward, backward, _ = record_pairs(inputs, mixture, [bool(one) for one in wanted])
    run(forward)
    assert_modelled(backward)


def test_model_of_the_pairs_in_chunks_and_without_mu(monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 8)
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 10**6)
    (y, x, _, stds), mixture = case(5, 4, 3, 20)
    forward, backward, _ = record_pairs((y, x, None, stds), mixture)
    distances = next(la for la in forward if la.kernel.__name__ == "distances_kernel")
    assert distances.programs == 9
    assert_modelled(forward)
    assert_modelled(backward)


def test_pairs_of_one_tile_read_each_element_once_and_shifts():
    """Distances read y, x, mu and stds once; the rest of each pass reads some of them again."""
    n, m, s, e = 32, 32, 2, 64
    forward, backward, _ = record_pairs(*without_data(*case(n, m, s, e)))
    half = n * s * e * 4
    found = total(forward, expected)
    read = {k: v / half for k, v in found["distances_kernel"].read.items() if k in NAMES}
    assert read == {"y": 1, "x": 1, "mu": 1, "stds": 1}
    assert found["shift_kernel"].read["stds"] == half
    assert found["log_determinants_kernel"].read["stds"] == 2 * half
    # The difference and the square of every pair, beside what a row of 32 shares.
    flops = found["distances_kernel"].flops / (n * m * s * e)
    assert 4 < flops < 4.5
    found = total(backward, expected)
    read = {k: v / half for k, v in found["samples_gradient_kernel"].read.items() if k in NAMES}
    assert read == {"y": 1, "x": 1, "mu": 1, "stds": 1}
    names = ("d_y", "d_x", "d_mu", "d_stds")
    written = [kernel.written.get(name, 0) for kernel in found.values() for name in names]
    assert sum(written) == 7 * half  # and half of the gradient of y is filled with zeros


def record_logsumexp(d, n, m, own, device="cpu", each=False):
    energies = torch.randn(d, 3, n, m, dtype=torch.float64, device=device)
    with recorded() as forward:
        rows = logsumexp.logsumexp(energies, own)
        terms = logsumexp.means(rows, m)
    upstream = torch.ones_like(rows) if each else torch.ones_like(terms)[..., None]
    with recorded() as backward:
        logsumexp.logsumexp_backward(upstream, energies, rows, own)
    return forward, backward


@pytest.mark.parametrize("each", [False, True], ids=["mean", "each"])
@pytest.mark.parametrize("own", ["all meet", "diagonal", "origins"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 7), (1, 3, 1100), (1, 600, 2)], ids=str)
def test_model_of_logsumexp(shape, own, each):
    origins = torch.zeros(shape[1], dtype=torch.int64)
    owns = {"all meet": None, "diagonal": Own(), "origins": Own(of_samples=origins)}
    for launches in record_logsumexp(*shape, owns[own], each=each):
        assert_modelled(launches)


def test_energies_are_read_once_in_each_direction_and_written_once():
    n, m = 4096, 4096
    forward, backward = record_logsumexp(1, n, m, None, "meta")
    assert len(forward) == 2 and len(backward) == 1
    matrices = 3 * 8 * n * m
    found = total([*forward, *backward], expected)
    state, means, gradient = (
        found[f"logsumexp_{name}_kernel"] for name in ("state", "means", "gradient")
    )
    assert state.read["energies"] == gradient.read["energies"] == matrices
    assert gradient.written["gradient"] == matrices
    rest = state.bytes + means.bytes + gradient.bytes - 3 * matrices
    assert rest < 0.01 * matrices


def test_large_batches_of_pairs_read_again_for_each_tile():
    n, m, s, e = 256, 256, 2, 64
    forward, _, _ = record_pairs(*without_data(*case(n, m, s, e)))
    found = total(forward, expected)["distances_kernel"]
    tile = _pairs_configs.pairs_tile(n, m, torch.float32)
    half = n * s * e * 4
    assert found.read["y"] == half * m / tile.COMPONENTS
    assert found.read["mu"] == half * n / tile.SAMPLES
    # Bound by arithmetic: an H100 computes less than 20 operations for each byte from memory.
    inputs_once = 4 * half
    assert found.flops / inputs_once > 60
    assert found.flops / found.bytes > 10


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_expected_pairs_are_those_of_a_mask_like_that(density):
    n, m, s, e = 70, 40, 40, 4
    inputs, mixture = case(n, m, s, e)
    mask = mixture.sample_mask
    mask.copy_(torch.rand(mask.shape) < density)
    forward, backward, _ = record_pairs(inputs, mixture)
    for this in (*forward, *backward):
        if this.kernel.__name__ == "_positions_kernel":
            launch(this.kernel, this.programs, *this.arguments, **this.meta)
    for this in (*forward, *backward):
        if this.kernel.__name__ in ("distances_kernel", "samples_gradient_kernel"):
            a, b = expected(this, density), counted(this)
            for field in ("samples", "components", "pairs", "tiles"):
                tolerance = 0 if density == 1 else 0.1
                assert abs(getattr(a, field) / getattr(b, field) - 1) <= tolerance, field


def record_online(n, m, s, e, how, device="cpu"):
    """Of weighted components with samples that come from them, of an entropy or of a mixture whose
    samples have their own stds; backward in the second case with a gradient of each sample."""
    inputs, mixture = case(n, m, s, e)
    own = weights = None
    if how != "own stds":
        mixture = mixture._replace(sample_eps=None)
    if how == "origins":
        own = Own(of_samples=torch.arange(n) % m, left_out=False)
        weights = torch.zeros(m, dtype=torch.float64)
    if device == "meta":
        inputs, mixture = without_data(inputs, mixture)
    rows = torch.zeros(1, 5, n, dtype=torch.float64, device=device)
    upstream = torch.ones(1, 5, n if how == "entropy" else 1, dtype=torch.float64, device=device)
    wanted = [True] * (4 + (weights is not None))
    with recorded() as forward:
        online.online(inputs, [mixture], own, weights, rows)
    with recorded() as backward:
        online.online_backward(upstream, inputs, [mixture], own, weights, rows, wanted)
    return forward, backward


@pytest.mark.parametrize("programs", [1, 12])
@pytest.mark.parametrize("how", ["origins", "entropy", "own stds"])
@pytest.mark.parametrize("shape", [(5, 4, 1, 7), (34, 70, 9, 4)], ids=str)
def test_model_of_the_online_log_sum_exp(monkeypatch, shape, how, programs):
    monkeypatch.setattr(_configs, "enough_programs", lambda device: programs)
    monkeypatch.setattr(_pairs_configs, "_BLOCK_ROWS", 32)
    monkeypatch.setattr(_pairs_configs, "_BLOCK_PAIRS", 32 * 64)
    forward, backward = record_online(*shape, how)
    assert_modelled(forward)
    assert_modelled(backward)


def test_of_a_vocabulary_no_memory_grows_with_the_pairs():
    """What is written beside gradients is shares of samples, and one block of weights at a time."""
    n, m, e = 2048, 50_000, 576
    forward, backward = record_online(n, m, 1, e, "own stds", "meta")
    matrices = n * m * 8
    written = {name: t.written for name, t in total(forward, expected).items()}
    allocated = sum(a.numel() * a.element_size() for a in (forward[-1].named()["parts"],))
    assert allocated < 0.01 * matrices
    assert written["online_kernel"].keys() == {"parts"}
    block = {name: t for name, t in backward[-1].named().items() if isinstance(t, torch.Tensor)}
    weighed = next(la for la in backward if la.kernel.__name__ == "weigh_kernel").named()
    names = ("by_sample", "by_component", "of_g", "of_k")
    assert sum(weighed[name].numel() * 4 for name in names) <= 4 * 2**24
    assert all(t.numel() < n * m / 3 for t in block.values())
