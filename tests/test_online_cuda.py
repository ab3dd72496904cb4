"""The log-sum-exp in the CUDA kernels, emulated: one call each way, with and without energies in
memory; every share, block and rare case."""

import pytest
import torch
from cases import mi, mi_inputs
from fused_mi import _estimators, use_backend
from fused_mi._estimators import HEADER, logsumexp_state
from fused_mi.cuda import _library, estimators, online
from fused_mi.ops import _backends
from marks import combine, dtypes, pairing
from online_cases import (
    NAMES,
    SPOILED,
    assert_as_where_energies_are_kept,
    assert_close,
    assert_memory_is_written,
    assert_nan_of_absent_tokens,
    assert_no_pairs_in_the_state,
    assert_one_gradient,
    evaluate,
    weighted_case,
)
from rules import assert_rule10

pytestmark = pytest.mark.skipif(
    not _library.EMULATED.exists(), reason="FUSED_MI_BUILD_EMULATED was not 1"
)
BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _emulated(monkeypatch):
    monkeypatch.setenv(_library.VARIABLE, "1")
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 0)
    _backends._choose.cache_clear()
    with use_backend("cuda"):
        yield
    _backends._choose.cache_clear()


@pytest.fixture
def in_parts(monkeypatch):
    """Blocks of both roles; the emulated GPU is so small that components are shared as well."""
    monkeypatch.setattr(online, "BLOCK_ROWS", 32)
    monkeypatch.setattr(online, "BLOCK_PAIRS", 32 * 64)


@pytest.mark.usefixtures("in_parts")
@combine
@pairing
def test_shares_and_blocks(pairing, combine):
    inputs = mi_inputs(135 - (pairing != "leave_one_out"), 2, 4, dtype=F32, seed=2, offset=5e5)
    options = {"estimator": "logsumexp", "pairing": pairing, "combine": combine}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@pytest.mark.usefixtures("in_parts")
@pairing
def test_blocks_of_narrow_gradients(pairing):
    """They add up in float32."""
    inputs = mi_inputs(134, 1, 8, dtype=BF16, seed=5, density=1.0)
    options = {"estimator": "logsumexp", "pairing": pairing}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("positions", [1, 3])
@dtypes(F32, BF16)
def test_weights_and_origins(dtype, positions, reduction, left_out):
    options = {"leave_origins_out": left_out, "reduction": reduction}
    inputs, scoring = weighted_case(s=positions, dtype=dtype, **options)
    assert_close(estimators, inputs, scoring)


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_kept_energies(monkeypatch, reduction, left_out):
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 1 << 20)
    inputs, scoring = weighted_case(s=2, leave_origins_out=left_out, reduction=reduction)
    assert logsumexp_state(inputs, scoring).numel() == HEADER + 5 * 40 + 3 * 40 * 70
    assert_close(estimators, inputs, scoring)


@pytest.mark.parametrize("kept", [False, True])
def test_few_samples(monkeypatch, kept):
    """Against many components: their shares, and parts of a gradient."""
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 1 << 20 if kept else 0)
    inputs, scoring = weighted_case(1, 300, e=12, reduction="none")
    assert_close(estimators, inputs, scoring)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("only", range(5), ids=NAMES)
def test_one_gradient(only):
    assert_one_gradient(estimators, only)


@pytest.mark.parametrize("kept", [False, True])
@pairing
def test_memory_is_written_before_it_is_read(monkeypatch, pairing, kept):
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 1 << 20 if kept else 0)
    assert_memory_is_written(pairing)


@pytest.mark.parametrize("kept", [False, True])
def test_one_operator_each_way(monkeypatch, kept):
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 1 << 20 if kept else 0)
    called, library = [], _library.operators()

    class Recorded:
        def __getattr__(self, name):
            called.append(name)
            return getattr(library, name)

    for module in (online, estimators):
        monkeypatch.setattr(module, "operators", Recorded)
    inputs, scoring = weighted_case(9, 7)
    evaluate(estimators, inputs, scoring)
    assert called == ["logsumexp_of_pairs", "logsumexp_of_pairs_backward"]


def test_nothing_of_all_pairs_is_kept():
    assert_no_pairs_in_the_state(estimators)


@pytest.mark.parametrize("kept", [False, True])
def test_a_token_that_is_not_there(monkeypatch, kept):
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 1 << 20 if kept else 0)
    assert_nan_of_absent_tokens(estimators)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("left_out", [False, True])
def test_what_leaves_float32(monkeypatch, how, left_out):
    """As where energies are kept."""
    assert_as_where_energies_are_kept(estimators, monkeypatch, how, left_out)
