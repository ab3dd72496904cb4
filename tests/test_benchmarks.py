"""The measuring itself: it refuses a planted wrong result, and peers agree with float64."""

import dataclasses
import time

import pytest
import torch
from cases import value_and_gradients
from marks import estimator, pairing
from oracle import ENTROPY, TOTAL, mixture_entropy, mutual_information
from tiny_suite import ABOUT, CASES, TINY, as_inputs, backend, bench

from benchmarks import contestants, limits, measure, peers
from benchmarks.cases import ALL, SUITES, Case
from benchmarks.contestants import Contestant, Refused
from benchmarks.exact import exact
from benchmarks.records import OK, OOM, REFUSED, WRONG

ENTROPIES = (
    Case("small", 8, 3, 5, op="entropy"),
    Case("few", 11, 1, 3, "logsumexp", op="entropy", few=4),
    Case("few", 11, 1, 3, "logsumexp", op="entropy", few=4, wanted=("noisy",)),
)


def formula(case):
    """Value and gradients by the double loop of the tests."""

    def run(t):
        eps_dtype = torch.float64 if case.dtype == "float64" else torch.float32
        if not case.information:
            mu, sigma, mask, x, y = t
            i, j = slice(0, case.samples), slice(case.samples, None)
            inputs = (x[j], y[i], mu[j], sigma[j], mask[i])
            options = {"component_mask": mask[j], "reduction": "sum", "eps_dtype": eps_dtype}
            return mixture_entropy(inputs, case.estimator, **options)[ENTROPY]
        wide = [v.double() if v.dim() == 3 else v for v in t]
        return mutual_information(wide, case.estimator, case.pairing, eps_dtype=eps_dtype)[TOTAL]

    return run


@pytest.mark.parametrize("case", [*CASES, *ENTROPIES[:2]], ids=str)
def test_exact_values_are_those_of_the_double_loop(case, monkeypatch):
    inputs = as_inputs(case)
    want, gradients = value_and_gradients(formula(case), inputs, torch.float64)
    monkeypatch.setattr("benchmarks.exact._BLOCK", 16)  # many blocks
    found = exact(case, inputs)
    assert found.value == pytest.approx(want.item(), rel=1e-12)
    for a, b in zip(found.gradients, gradients, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-6, atol=1e-6)


@estimator
@pytest.mark.parametrize("op", ["mutual information", "entropy"])
@pytest.mark.parametrize("peer", [p for p in peers.PEERS if not p.compiled], ids=lambda p: p.name)
def test_peers_agree_with_float64_or_say_why_not(peer, estimator, op):
    served = 0
    for case in (dataclasses.replace(c, op=op) for c in CASES if c.estimator == estimator):
        if case.pairing != "sub_batch" and not case.information:
            continue
        if peer.why_not(case):
            continue
        served += 1
        inputs = as_inputs(case)

        def loss(*t, case=case):
            return peer.loss(*t, case.estimator, case.directions, case.information)

        measure.errors(case, contestants.run_of(case, loss, inputs), exact(case, inputs))
    one_estimator = {"torch.distributions": "logsumexp", "CLUB's pair form": "jensen"}
    one_estimator["pair formula, in chunks"] = "logsumexp"
    other = {"linear form, leanest": "entropy", "pair formula, in chunks": "mutual information"}
    assert (
        served or other.get(peer.name) == op or one_estimator.get(peer.name, "jensen") != estimator
    )


def test_chunks_are_the_whole(monkeypatch):
    monkeypatch.setattr(peers, "_CHUNK", 50)  # of two samples each
    for case in ENTROPIES[1:]:
        inputs = as_inputs(case)

        def loss(*t, case=case):
            return peers.CHUNKED.loss(*t, case.estimator, case.directions, case.information)

        measure.errors(case, contestants.run_of(case, loss, inputs), exact(case, inputs))


def test_peers_that_are_not_installed_are_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert "pip install pykeops" in peers.KEOPS.why_not(Case("x", 8, 1, 4))
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert "compiler" in peers.compiled(peers.PAIRS).why_not(Case("x", 8, 1, 4))


def test_a_wrong_result_gets_no_time():
    case = Case("planted", 8, 2, 5)
    found = list(
        bench().records(
            case,
            [
                backend(case, "right"),
                backend(case, "wrong", factor=1.0001),
                Contestant("wrong gradient", "backend", lambda i: _wrong_gradient(case, i)),
                backend(case, "nan", factor=float("nan")),
            ],
        )
    )
    by_name = {r.contestant: r for r in found if r.mode == "both"}
    assert by_name["right"].status == OK and by_name["right"].median > 0
    for name in ("wrong", "wrong gradient", "nan"):
        assert by_name[name].status == WRONG and by_name[name].median is None
        assert not by_name[name].samples
        assert "error of the value" in by_name[name].reason


def _wrong_gradient(case, inputs):
    run = contestants.run_of(case, contestants.loss_of(case), inputs)

    def wrong():
        value, backward = run()
        return value, lambda: [1.001 * g for g in backward()]

    return wrong


def test_failures_are_results(monkeypatch):
    case = Case("planted", 8, 2, 5)

    def memory(inputs):
        raise torch.OutOfMemoryError("not enough")

    def failing(inputs):
        raise ValueError("in two\nlines")

    def long(inputs):
        raise Refused("too long")

    makes = {"a": memory, "b": failing, "c": long}
    rows = [Contestant(name, "peer", make) for name, make in makes.items()]
    found = {r.contestant: r for r in bench().records(case, rows) if r.mode == "both"}
    assert {name: r.status for name, r in found.items()} == {"a": OOM, "b": REFUSED, "c": REFUSED}
    assert found["b"].reason == "ValueError: in two lines" and found["c"].reason == "too long"
    monkeypatch.setattr(contestants, "available_memory", lambda device: 1)
    peers_of_case = [c for c in contestants.of(case, "cpu", 1.0) if c.kind == "peer"]
    found = {r.contestant: r for r in bench().records(case, peers_of_case)}
    assert found["linear form, eager"].status == OOM
    assert "0 GiB are free" in found["linear form, eager"].reason
    assert "more than the suite has time for" in found["pair formula, eager"].reason


@pairing
@pytest.mark.parametrize("wanted", [ALL, ("means", "noisy"), ()])
def test_bytes_are_the_floor_of_the_kernels_model(pairing, wanted, monkeypatch):
    traffic = pytest.importorskip("fused_mi.triton_kernels._traffic")
    import fused_mi.losses
    from fused_mi._mixture import mixtures_of

    case = Case("x", 8, 4, 5, pairing=pairing, masked=0.5, wanted=wanted)
    seen = []
    original = fused_mi.losses._ESTIMATORS["jensen"]

    def spy(inputs, scoring, first_only):
        mixtures = mixtures_of(
            scoring, inputs, lambda _, roles, *__: [torch.zeros(())] * len(roles)
        )
        flags = [t.requires_grad for t in inputs]
        seen.append(traffic.floor(*inputs, mixtures, flags, density=0.5))
        return original(inputs, scoring, first_only)

    monkeypatch.setitem(fused_mi.losses._ESTIMATORS, "jensen", spy)
    contestants.run_of(case, contestants.loss_of(case), as_inputs(case))()
    floor = seen[0]
    moved = limits.bytes_moved(case)
    assert moved["fwd"] == floor["eps reads"] + floor["forward reads"]
    if wanted:
        assert moved["bwd"] == floor["backward reads"] + floor["gradient writes"]
        assert moved["both"] == sum(floor.values())


def test_inputs_have_the_masks_of_their_case():
    _, _, mask, _, _ = as_inputs(Case("x", 6, 10, 2, masked=0.9))
    assert mask.sum(1).tolist() == [1] * 6 and mask[:, 0].all()
    _, _, mask, _, _ = as_inputs(Case("x", 6, 10, 2, masked=0.5))
    assert mask.sum(1).tolist() == [5] * 6


@pytest.mark.parametrize("suite", SUITES)
def test_suites_are_well_formed(suite):
    cases = SUITES[suite].named("")
    assert len({case.name for case in cases}) == len(cases)
    assert {"jensen", "logsumexp"} == {case.estimator for case in cases}
    if suite not in ("cpu", "small"):
        assert {"sub_batch", "symmetric", "leave_one_out"} == {case.pairing for case in cases}
        groups = {"sweep B", "sweep S", "sweep E", "MiniLM", "LLM", "representation", "images"}
        assert groups <= {case.group for case in cases}
    for case in cases:
        assert case.B % 2 == 0 or case.pairing == "leave_one_out"
        assert set(case.wanted) <= set(ALL)


def test_warm_samples_leave_out_the_first_pass():
    calls = []

    def run():
        time.sleep(0.0 if calls else 0.2)
        calls.append("forward")
        return None, lambda: calls.append("backward")

    sample = measure.Clock("cpu", block=0.01).passes(run)
    assert sample["both"] < 100 and len(calls) >= 4 and calls.count("backward") == len(calls) / 2


def test_training_step_with_each_backend():
    pytest.importorskip("transformers", reason="the extra `train` is not installed")
    from benchmarks import end_to_end

    found = list(end_to_end.steps(TINY, measure.Clock("cpu"), ABOUT))
    assert {r.contestant for r in found} >= {"reference"}
    for r in found:
        assert r.mode == "step" and r.status == OK and r.loss_share > 0
