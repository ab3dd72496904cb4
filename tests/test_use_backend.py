"""A forced backend: the context, the environment, threads, and what cannot be served."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import fused_mi
import pytest
import torch
from cases import mi, mi_inputs
from fused_mi.ops import _backends, _triton

pytestmark = pytest.mark.usefixtures("unforced")


def test_a_forced_choice_says_so():
    with fused_mi.use_backend("reference"):
        assert {c.reason for c in fused_mi.explain(torch.ones(1))} == {"forced"}


@pytest.fixture
def _no_logsumexp(monkeypatch):
    """As if Triton did not serve this operator."""
    monkeypatch.setattr(_triton, "OPERATORS", ("jensen", "distances", "variance"))


@pytest.mark.usefixtures("_no_logsumexp")
def test_a_forced_backend_is_used_or_raises():
    inputs = mi_inputs()
    with fused_mi.use_backend("triton"):
        assert {c.backend for c in map(_serving, ("variance", "jensen"))} == {"triton"}
        mi(inputs)
        with pytest.raises(RuntimeError, match="'triton' was forced and cannot serve logsumexp"):
            mi(inputs, estimator="logsumexp")
        with fused_mi.use_backend("reference"):
            mi(inputs, estimator="logsumexp")
        # No operator: exempt.
        fused_mi.square_mahalanobis_distance(*inputs[3:], inputs[1], inputs[2])
        fused_mi.masked_negative_log_mean(inputs[1])
    assert _backends.forced() is None


def _serving(operator):
    return _backends._choose(operator, "cpu", _backends.forced())


@pytest.mark.usefixtures("_no_logsumexp")
def test_the_environment_forces_too_and_the_context_goes_first(monkeypatch):
    monkeypatch.setenv("FUSED_MI_BACKEND", "triton")
    assert _backends.forced() == "triton"
    with pytest.raises(RuntimeError, match="cannot serve logsumexp"):
        fused_mi.explain(torch.ones(1))
    with fused_mi.use_backend("reference"):
        assert {c.backend for c in fused_mi.explain(torch.ones(1))} == {"reference"}
    monkeypatch.setenv("FUSED_MI_BACKEND", "")
    assert _backends.forced() is None


def test_unknown_names_are_errors_that_list_the_known_ones(monkeypatch):
    with (
        pytest.raises(ValueError, match="use_backend: expected one of 'triton', 'cpu'"),
        fused_mi.use_backend("mps"),
    ):
        pass
    monkeypatch.setenv("FUSED_MI_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"FUSED_MI_BACKEND: expected one of .* got 'fast'"):
        mi(mi_inputs())


def test_an_error_inside_leaves_nothing_forced():
    with pytest.raises(KeyError), fused_mi.use_backend("reference"):
        raise KeyError
    assert _backends.forced() is None


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_blocks_left_in_any_order(order):
    """The one entered last of those still open counts, two of the same backend included."""
    names = ("reference", "cpu", "reference")
    blocks = [fused_mi.use_backend(name) for name in names]
    for block in blocks:
        block.__enter__()
    still = [0, 1, 2]
    for i in order:
        assert _backends.forced() == names[still[-1]]
        blocks[i].__exit__(None, None, None)
        still.remove(i)
    assert _backends.forced() is None


def test_generators_closed_out_of_order():
    def forcing(name):
        with fused_mi.use_backend(name):
            yield

    first, second = forcing("reference"), forcing("cpu")
    next(first)
    next(second)
    first.close()
    assert _backends.forced() == "cpu"
    with pytest.raises(KeyError):
        second.throw(KeyError)
    assert _backends.forced() is None
    abandoned = forcing("reference")
    next(abandoned)
    del abandoned  # which closes it
    assert _backends.forced() is None


def test_blocks_of_threads_that_overlap():
    entered, left = threading.Barrier(2), threading.Barrier(2)

    def first():
        with fused_mi.use_backend("reference"):
            entered.wait(10)
        left.wait(10)

    def second():
        entered.wait(10)
        with fused_mi.use_backend("cpu"):
            left.wait(10)  # the other one has left by now
            return _backends.forced()

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(first), pool.submit(second)]
        assert [r.result(20) for r in results] == [None, "cpu"]
    assert _backends.forced() is None


def test_other_threads_are_forced_too():
    """The threads of autograd among them."""
    with fused_mi.use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(_backends.forced).result(20) == "reference"


def test_many_threads_leave_nothing_forced():
    start = threading.Barrier(8)

    def work(i):
        start.wait(10)
        for _ in range(200):
            with fused_mi.use_backend(("reference", "cpu")[i % 2]):
                assert _backends.forced() is not None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert _backends.forced() is None


def test_as_a_decorator():
    @fused_mi.use_backend("reference")
    def forced():
        return _backends.forced()

    assert [forced(), forced(), _backends.forced()] == ["reference", "reference", None]


def test_inside_a_compiled_function_it_breaks_the_graph_and_holds(monkeypatch):
    used = []

    def choose(*arguments):
        used.append(_backends.forced())
        return _backends.choose(*arguments)

    def forcing(*inputs):
        with fused_mi.use_backend("reference"):
            return mi(inputs)

    monkeypatch.setattr("fused_mi.ops._operator.choose", choose)
    inputs = mi_inputs()
    value = torch.compile(forcing, backend="eager")(*inputs)
    assert used == ["reference"]
    assert torch.equal(value, forcing(*inputs))
