"""The part of `make gpu` for the pairs, as far as it goes without a GPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu import (
    _loss,
    _measure,
    _report,
    _rule10,
    correctness,
    pairs_timings,
    pairs_values,
    timings,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)


def test_checks_of_extremes_pass_in_the_interpreter():
    rows = list(correctness.run_group("logsumexp_extremes", "cpu", 120))
    assert len(rows) == 10
    assert [row for row in rows if row["passed"] is not True] == []


def test_energies_and_a_sample_of_the_gradients(monkeypatch):
    monkeypatch.setattr(pairs_values, "_LARGEST", 400)
    inputs = _loss.large_inputs((10, 5, 30), "cpu", torch.float32)
    eps = torch.tensor(1e-4)
    assert pairs_values._operator(inputs, eps).passed

    def wrong(*arguments):
        gradients = pairs_backward(*arguments)
        gradients[3][9, 4, 29] += 1e-3 * gradients[3].abs().max()
        return gradients

    pairs_backward = pairs_values.pairs_backward
    monkeypatch.setattr(pairs_values, "pairs_backward", wrong)
    outcome = pairs_values._operator(inputs, eps)
    assert not outcome.passed
    assert outcome.what == "gradient of stds"


@pytest.mark.parametrize("pairing", ["sub_batch", "leave_one_out"])
def test_the_plain_implementation_passes_under_logsumexp(pairing):
    inputs = _loss.small_inputs((6, 3, 4), "cpu")
    options = {"pairing": pairing, "estimator": "logsumexp"}
    found = _loss.evaluate(inputs, backend="reference", **options)
    assert _rule10.rule10(inputs, found, **options).passed
    wrong = found._replace(value=found.value * 1.001)
    assert _rule10.rule10(inputs, wrong, **options).what == "value"


def test_inputs_that_cannot_be_compared_whole_are_refused(monkeypatch):
    monkeypatch.setattr(_rule10, "_PAIR_ELEMENTS", 100)
    inputs = _loss.small_inputs((6, 4, 9), "cpu")
    found = _loss.evaluate(inputs, backend="reference", estimator="logsumexp")
    with pytest.raises(ValueError, match="too large"):
        _rule10.rule10(inputs, found, estimator="logsumexp")


def test_timings_of_a_tiny_case(monkeypatch):
    eager = "pair formula, eager"
    monkeypatch.setattr(_measure, "_SECONDS", 0.0)
    case = pairs_timings.Case((4, 1, 3), torch.float32, (eager,))
    (row,) = pairs_timings.cases(60, "cpu", [case])
    row = pairs_timings.judged(row, True)
    assert row["passed"] is True
    assert row["flops"] == 4 * 2 * 2 * 3
    assert row["peak"]["TFLOP/s"] > 0
    assert {name for name, found in row["contestants"].items() if found["agrees"]} == {
        timings.OURS,
        eager,
    }
    assert list(row["speedups"]) == [eager]
    assert pairs_timings.judged(row, False)["speedups"].startswith("withheld")
    (row,) = pairs_timings.cases(0, "cpu", [case])
    assert row["message"] == "not run: out of time"


def test_shares_and_targets():
    """At 50 TFLOP/s and 1 GB per ms."""
    four = ("forward", "backward", "both", "host")
    arithmetic = {
        "name": "case",
        "shape": list(pairs_timings.ARITHMETIC),
        "dtype": "float32",
        "floor_bytes": 1e9,
        "flops": 2.5e10,
        "peak": {"TFLOP/s": 50.0},
        "copy": {"bytes": 1e9, "ms": {"median": 1.0}},
        "contestants": {timings.OURS: {"agrees": True, "ms": {k: {"median": 2.0} for k in four}}},
        "kernels": [{"kernel": "distances_kernel", "us": 1000.0, "launches": 1.0}],
    }
    memory = {**arithmetic, "shape": list(pairs_timings.MEMORY), "kernels": []}
    memory["contestants"] = {timings.OURS: {**arithmetic["contestants"][timings.OURS]}}
    rows = [pairs_timings.judged(row, True) for row in (arithmetic, memory)]
    found = rows[0]["contestants"][timings.OURS]
    assert (found["of_peak"], found["over_floor"]) == pytest.approx((0.25, 2.0))
    assert rows[0]["energies_of_peak"] == pytest.approx(0.5)
    assert [list(row["targets"].values()) for row in rows] == [[True], [False]]
    head = {"commit": "abc", "device": {"name": "Some GPU"}, "versions": {}}
    text = _report.summary({**head, "phases": {"pairs": {"seconds": 1, "rows": rows}}})
    for part in ("50.0 TFLOP/s", "25%", "MISSED", "met", "distances_kernel"):
        assert part in text
