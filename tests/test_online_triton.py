"""The online log-sum-exp in Triton, in the interpreter: every share, block and rare case."""

import pytest
import torch
from cases import mi, mi_inputs
from fused_mi import _estimators, use_backend
from fused_mi.triton_kernels import _configs, _pairs_configs, estimators
from fused_mi.triton_kernels._launch import recorded
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
    weighted_case,
)
from rules import assert_rule10

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _keep_nothing(monkeypatch):
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 0)
    with use_backend("triton"):
        yield


@pytest.fixture
def in_parts(monkeypatch):
    """Several shares of the components, and blocks of both roles."""
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 7)
    monkeypatch.setattr(_pairs_configs, "_BLOCK_ROWS", 32)
    monkeypatch.setattr(_pairs_configs, "_BLOCK_PAIRS", 32 * 64)


@pytest.mark.usefixtures("in_parts")
@combine
@pairing
def test_shares_and_blocks(pairing, combine):
    inputs = mi_inputs(71 - (pairing != "leave_one_out"), 2, 5, dtype=F32, seed=2, offset=5e5)
    options = {"estimator": "logsumexp", "pairing": pairing, "combine": combine}
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


def test_shares_do_not_change_what_is_found(monkeypatch):
    """But by the rounding of weights relative to another density."""
    inputs, scoring = weighted_case(20, 300)
    whole = estimators.logsumexp(inputs, scoring)[2]
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 100)
    with recorded() as launches:
        estimators.logsumexp(inputs, scoring)
    assert next(la for la in launches if la.kernel.__name__ == "online_kernel").programs == 10
    shared = estimators.logsumexp(inputs, scoring)[2]
    torch.testing.assert_close(shared, whole, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("only", range(5), ids=NAMES)
def test_one_gradient(only):
    assert_one_gradient(estimators, only)


def test_what_is_not_wanted_is_not_launched():
    inputs, scoring = weighted_case()
    total, _, state = estimators.logsumexp(inputs, scoring)
    with recorded() as launches:
        wanted = [True, False, False, False, False]
        estimators.logsumexp_backward((total, None), inputs, scoring, state, wanted)
    names = [la.kernel.__name__ for la in launches]
    assert "samples_gradient_kernel" in names
    assert not {"components_gradient_kernel", "sum_weights_kernel"} & {*names}
    weigh = next(la for la in launches if la.kernel.__name__ == "weigh_kernel").named()
    assert "by_component" in weigh and not {"by_sample", "of_g", "of_k"} & weigh.keys()


@pytest.mark.usefixtures("in_parts")
@pairing
def test_memory_is_written_before_it_is_read(pairing):
    assert_memory_is_written(pairing)


def test_nothing_of_all_pairs_is_kept():
    assert_no_pairs_in_the_state(estimators)


def test_float64_and_long_rows_take_the_other_way():
    for dtype, e in ((F64, 6), (F32, 4097)):
        inputs, scoring = weighted_case(5, 4, e=e, dtype=dtype)
        with recorded() as launches:
            estimators.logsumexp(inputs, scoring)
        names = {la.kernel.__name__ for la in launches}
        assert "distances_kernel" in names and "online_kernel" not in names


def test_a_token_that_is_not_there():
    assert_nan_of_absent_tokens(estimators)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("left_out", [False, True])
def test_what_leaves_float32(monkeypatch, how, left_out):
    """As where energies are kept."""
    assert_as_where_energies_are_kept(estimators, monkeypatch, how, left_out)
