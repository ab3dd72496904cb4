"""The measuring itself: it finds a planted slow-down, refuses a planted wrong result, and sees
nothing where there is nothing."""

import dataclasses
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases import value_and_gradients
from marks import estimator, pairing
from oracle import ENTROPY, TOTAL, mixture_entropy, mutual_information

for _module in ("matplotlib", "scipy"):
    pytest.importorskip(_module, reason="the extra `bench` is not installed")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import contestants, limits, measure, peers, records, suites  # noqa: E402
from benchmarks.cases import ALL, SUITES, Case, Suite, distinct  # noqa: E402
from benchmarks.compare import compare  # noqa: E402
from benchmarks.contestants import Contestant  # noqa: E402
from benchmarks.exact import exact  # noqa: E402
from benchmarks.records import OK, OOM, REFUSED, WRONG  # noqa: E402

TINY = Suite((), 0.0, 1.0, 4, 5, 1e8, "tiny")
ABOUT = {"device": "a machine", "threads": 1, "versions": {"torch": "1"}, "commit": "abc"}
CASES = [
    Case("small", 8, 3, 5, estimator, pairing, dtype, masked)
    for estimator in ("jensen", "logsumexp")
    for pairing in ("sub_batch", "symmetric", "leave_one_out")
    for dtype, masked in (("float32", 0.0), ("float64", 0.4))
]


@pytest.fixture(scope="module")
def bench():
    return suites.Bench(TINY, "cpu", ABOUT)


def backend(case, name="reference", repeat=1, factor=1.0):
    """The public function, possibly wrong by a factor, or done several times."""
    function = contestants.loss_of(case)

    def loss(*inputs):
        return factor * sum(function(*inputs) for _ in range(repeat)) / repeat

    return Contestant(name, "backend", lambda inputs: contestants.run_of(case, loss, inputs))


def as_inputs(case):
    return contestants.inputs_of(case, "cpu")


def formula(case):
    """Value and gradients by the double loop of the tests."""

    def run(t):
        eps_dtype = torch.float64 if case.dtype == "float64" else torch.float32
        if not case.information:
            mu, sigma, mask, x, y = t
            i, j = slice(0, case.B // 2), slice(case.B // 2, None)
            inputs = (x[j], y[i], mu[j], sigma[j], mask[i])
            options = {"component_mask": mask[j], "reduction": "sum", "eps_dtype": eps_dtype}
            return mixture_entropy(inputs, case.estimator, **options)[ENTROPY]
        wide = [v.double() if v.dim() == 3 else v for v in t]
        return mutual_information(wide, case.estimator, case.pairing, eps_dtype=eps_dtype)[TOTAL]

    return run


@pytest.mark.parametrize("case", [*CASES, Case("small", 8, 3, 5, op="entropy")], ids=str)
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
            return peer.loss(*t, case.estimator, case.pairing, case.information)

        measure.errors(case, contestants.run_of(case, loss, inputs), exact(case, inputs))
    one_estimator = {"torch.distributions": "logsumexp", "CLUB's pair form": "jensen"}
    only_information = peer.name == "linear form, leanest" and op == "entropy"
    assert served or only_information or one_estimator.get(peer.name, "jensen") != estimator


def test_peers_that_are_not_installed_are_left_out_with_a_reason(monkeypatch):
    from benchmarks.peers import compiled, eager_pairs, keops

    monkeypatch.setattr(keops.importlib.util, "find_spec", lambda name: None)
    keops._missing.cache_clear()
    assert "pip install pykeops" in keops.PEER.why_not(Case("x", 8, 1, 4))
    keops._missing.cache_clear()
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert "compiler" in compiled.of(eager_pairs.PEER).why_not(Case("x", 8, 1, 4))


def test_a_wrong_result_gets_no_time(bench):
    case = Case("planted", 8, 2, 5)
    found = list(
        bench.records(
            case,
            lambda *_: [
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


def test_failures_are_results(bench):
    case = Case("planted", 8, 2, 5)

    def memory(inputs):
        raise torch.OutOfMemoryError("not enough")

    def failing(inputs):
        raise ValueError("in two\nlines")

    rows = [
        Contestant("a", "peer", memory),
        Contestant("b", "peer", failing),
        Contestant("c", "peer", failing, "too long"),
        Contestant("d", "peer", failing, "too large", lacks_memory=True),
    ]
    found = {r.contestant: r for r in bench.records(case, lambda *_: rows) if r.mode == "both"}
    assert {name: r.status for name, r in found.items()} == {
        "a": OOM,
        "b": REFUSED,
        "c": REFUSED,
        "d": OOM,
    }
    assert found["b"].reason == "ValueError: in two lines"


@pytest.fixture
def time_of_this_thread(monkeypatch):
    """The time that this thread has a core, whoever else wants one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(time, "perf_counter", time.thread_time)
    yield
    torch.set_num_threads(threads)


def test_a_planted_slow_down_is_found_and_equal_code_is_not(time_of_this_thread):
    case = Case("planted", 64, 16, 256)
    suite = TINY._replace(least=39, most=40)
    rows = [backend(case, "once"), backend(case, "twice", repeat=2)]
    measured = suites.Bench(suite, "cpu", ABOUT).records(case, lambda *_: rows)
    once, twice = (r for r in measured if r.mode == "both")

    def named(record, samples):
        return dataclasses.replace(record, contestant="ours").timed(samples)

    (slower,) = compare([named(once, once.samples)], [named(twice, twice.samples)])
    assert slower.verdict == "slower" and slower.regression, slower
    (faster,) = compare([named(twice, twice.samples)], [named(once, once.samples)])
    assert faster.verdict == "faster" and not faster.regression, faster

    # twenty comparisons share one level: each at its own would fail one run in three on noise
    draw = random.Random(0)
    equal = [draw.sample(once.samples, len(once.samples)) for _ in range(20)]
    first, second = (
        [dataclasses.replace(named(once, s[i::2]), case=f"split {k}") for k, s in enumerate(equal)]
        for i in (0, 1)
    )
    same = compare(first, second)
    assert len(same) == 20 and not any(c.regression for c in same), same


def record(**more):
    case = Case("group", 8, 2, 5)
    made = suites.record_of(
        case, "cpu", "backend", ABOUT, bytes=1e6, flops=2e6, copy=10.0, gemm=5.0
    )
    made = dataclasses.replace(made, mode="both", **more)
    return made.timed([1.0, 2.0, 3.0, 4.0, 5.0])


def test_a_slower_machine_is_no_regression_and_a_broken_case_is():
    rows = [record(case=f"case {i}") for i in range(50)]
    slower = [r.timed([1.5 * s for s in r.samples]) for r in rows]
    steady = [r.timed([1.0, 1.01, 1.02]) for r in rows]
    steady_slower = [r.timed([1.5, 1.51, 1.52]) for r in rows]
    assert all(c.verdict == "slower" for c in compare(steady, steady_slower))
    drifted = [dataclasses.replace(r, copy=10 / 1.5) for r in steady_slower]
    assert not any(c.regression for c in compare(steady, drifted))
    assert not any(c.regression for c in compare(rows, slower))  # within such a spread
    broken = [dataclasses.replace(rows[0], status=WRONG, samples=()), *rows[1:-1]]
    found = compare(rows, broken)
    assert found[0].verdict == "broken" and found[0].case == "case 0"
    assert found[-1].verdict == "only in A"


def test_rates_follow_from_times():
    r = record()
    assert (r.median, r.p20, r.p80) == (3.0, pytest.approx(1.8), pytest.approx(4.2))
    assert r.gb_per_s == pytest.approx(1e6 / 3e-3 / 1e9)
    assert r.of_copy == pytest.approx(r.gb_per_s / 10)
    assert r.of_gemm == pytest.approx(2e6 / 3e-3 / 1e9 / 5)


def test_records_survive_a_file(tmp_path, bench):
    case = Case("planted", 8, 2, 5, masked=0.5, wanted=("noisy",))
    found = list(bench.records(case, lambda *_: [backend(case), backend(case, "bad", factor=2)]))
    path = tmp_path / "new" / "r.jsonl"
    records.write(found[:2], path)
    records.write(found[2:], path)
    assert records.read(path) == found
    assert {r.mode for r in found} == {"fwd", "bwd", "both"}
    assert found[0].masked == 0.5 and found[0].wanted == ("noisy",)
    for text, said in (
        ("", "no record in it"),
        ("{}", "line 1"),
        ("[1]", "line 1"),
        ("x", "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(records.BadFile, match=said):
            records.read(path)
    with pytest.raises(records.BadFile, match="cannot be read"):
        records.read(tmp_path / "none")


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


def test_kernels_are_replayed_into_the_same_outputs(bench):
    import fused_mi

    usable = {b.name: b.usable for b in fused_mi.backends()}
    if not usable.get("cpu"):
        pytest.skip("the CPU library is not built")
    case = Case("x", 8, 4, 16)
    entries = [c for c in contestants.of(case, "cpu", 1e8) if c.name.startswith("cpu")]
    found = {r.contestant: r for r in bench.records(case, lambda *_: entries) if r.mode == "both"}
    assert found["cpu kernels"].status == OK, found["cpu kernels"].reason
    assert found["cpu kernels"].kind == "kernels"
    assert found["cpu"].status == OK


@pytest.mark.parametrize("suite", SUITES)
def test_suites_are_well_formed(suite):
    cases = distinct(SUITES[suite].cases, "")
    assert len({case.name for case in cases}) == len(cases)
    assert {"jensen", "logsumexp"} == {case.estimator for case in cases}
    pairings = {case.pairing for case in cases}
    assert suite == "cpu" or {"sub_batch", "symmetric", "leave_one_out"} == pairings
    for group in ("sweep B", "sweep S", "sweep E", "MiniLM", "LLM", "representation", "images"):
        assert suite == "cpu" or any(case.group == group for case in cases), group
    for case in cases:
        assert case.B % 2 == 0 or case.pairing == "leave_one_out"
        assert set(case.wanted) <= set(ALL)


def test_training_step_with_each_backend(monkeypatch):
    pytest.importorskip("transformers", reason="the extra `train` is not installed")
    from benchmarks import end_to_end

    monkeypatch.setattr(end_to_end, "_SECONDS", {"tiny": 0.0})
    monkeypatch.setattr(end_to_end, "_LEAST", 2)
    found = list(end_to_end.steps("tiny", "cpu", ABOUT))
    assert {r.contestant for r in found} >= {"reference"}
    for r in found:
        assert r.mode == "step" and r.status == OK and r.loss_share > 0


def run(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "100", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def test_command_line_from_a_run_to_a_report(tmp_path):
    file = tmp_path / "r.jsonl"
    options = ("--filter", "images", "--threads", 1, "--device", "cpu", "--out", file)
    result = run("run", *options, "--commit", "abc")
    assert result.returncode == 0, result.stderr
    assert "images: jensen" in result.stdout and "linear form, eager" in result.stdout
    found = records.read(file)
    assert {"reference", "pair formula, eager"} <= {r.contestant for r in found}
    assert found[0].machine["commit"] == "abc" and found[0].machine["threads"] == 1

    result = run("report", file, "--out", tmp_path / "page")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "page" / "index.html").read_text()
    assert not re.search(r"(src|href)=['\"](?!data:)", page), "the page needs another file"
    for name in ("speedups", "memory", "roofline", "accuracy"):
        assert (tmp_path / "page" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    same = run("compare", file, file)
    assert same.returncode == 0, same.stdout + same.stderr
    slow = tmp_path / "slow.jsonl"
    scaled = (r.timed([3 * s for s in r.samples]) if r.samples else r for r in found)
    steady = (dataclasses.replace(r, samples=(r.median,) * 5) if r.samples else r for r in scaled)
    records.write(steady, slow)
    again = tmp_path / "steady.jsonl"
    records.write(
        (dataclasses.replace(r, samples=(r.median,) * 5) if r.samples else r for r in found), again
    )
    worse = run("compare", again, slow)
    assert worse.returncode == 1 and "slower" in worse.stdout, worse.stdout + worse.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--suite", "none"), "argument --suite: invalid choice: 'none'"),
        (("run", "--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
        (("run", "--threads", "0"), "--threads must be at least 1"),
        (("run", "--filter", "no such case"), "no case of the suite quick"),
        (("run", "--tree", "docs"), "no python/fused_mi"),
        (("run", "--unknown"), "--unknown"),
        (("report", "nowhere.jsonl", "--out", "x"), "nowhere.jsonl: cannot be read"),
        (("compare", "README.md", "README.md"), "no record"),
        (("compare", "README.md", "HEAD"), "two files or two commits"),
        (("compare", "no-such-commit", "nor-this"), "neither a file nor a commit"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, said):
    result = run(*arguments, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr and result.stderr.count("\n") == 1, result.stderr
