"""Records, comparisons and the command line: a planted slow-down is found, and nothing where there
is nothing."""

import dataclasses
import random
import re
import time

import pytest
import torch
from processes import python
from tiny_suite import ABOUT, TINY, backend, bench

from benchmarks import records, suites, table
from benchmarks.cases import Case
from benchmarks.records import WRONG

compare = pytest.importorskip("benchmarks.compare", reason="the extra `bench` is missing").compare


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
    measured = suites.Bench(suite, "cpu", ABOUT).records(case, rows)
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


def test_no_ratio_where_the_backend_in_use_is_wrong():
    def ratios(*of_case):
        rows = [line.split() for line in table.lines(of_case)]
        return [row[-1] for row in rows if row and row[0] in ("cpu", "reference", "peer")]

    fast, slow, peer = (
        dataclasses.replace(record(), contestant=name, kind=kind)
        for name, kind in (("cpu", "backend"), ("reference", "backend"), ("peer", "peer"))
    )
    assert ratios(fast, slow.timed([6.0]), peer) == ["1.00", "2.00", "1.00"]
    wrong = dataclasses.replace(fast, status=WRONG, samples=(), reason="of a reason")
    found = ratios(wrong, slow.timed([6.0]), peer)
    assert found[:1] == [WRONG] and not {"1.00", "2.00", "0.50"} & set(found)


def test_records_survive_a_file(tmp_path):
    case = Case("planted", 8, 2, 5, masked=0.5, wanted=("noisy",))
    found = list(bench().records(case, [backend(case), backend(case, "bad", factor=2)]))
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
        with pytest.raises(records.NoRecords, match=said):
            records.read(path)
    with pytest.raises(records.NoRecords, match="cannot be read"):
        records.read(tmp_path / "none")


def run(*arguments, **environment):
    return python("-m", "benchmarks", *arguments, COLUMNS="100", **environment)


def test_command_line_from_a_run_to_a_report(tmp_path):
    file = tmp_path / "r.jsonl"
    options = ("--filter", "images", "--eager", "--threads", 1, "--device", "cpu", "--out", file)
    result = run("run", *options, "--commit", "abc")
    assert result.returncode == 0, result.stderr
    assert "images: jensen" in result.stdout and "linear form, eager" in result.stdout
    found = records.read(file)
    assert {"reference", "pair formula, eager"} <= {r.contestant for r in found}
    assert found[0].machine["commit"] == "abc" and found[0].machine["threads"] == 1

    only_table = run("report", file)
    assert only_table.returncode == 0, only_table.stderr
    head, _, row, *_, nearest = only_table.stdout.splitlines()
    assert head.startswith("| inputs (B, S, E) | fused_mi |")
    assert re.match(r'\| images, `"jensen"`, 64 x 1024 x 3 \| \*\*[\d.]+ ms\*\*', row), row
    assert row.count("|") == head.count("|") and " x" in row
    assert nearest.startswith("The nearest in any case: "), nearest

    result = run("report", file, "--out", tmp_path / "page")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "page" / "index.html").read_text()
    assert not re.search(r"(src|href)=['\"](?!data:)", page), "the page needs another file"
    for name in ("speedups", "memory", "roofline"):
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
        (("compare", "nowhere.jsonl", "README.md"), "nowhere.jsonl: cannot be read"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, said):
    result = run(*arguments, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr and result.stderr.count("\n") == 1, result.stderr
