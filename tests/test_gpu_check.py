"""`make gpu` as far as it goes without a GPU: what it says there, and its parts."""

import itertools
import json
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from cases import PAIRINGS
from processes import ROOT, python

from benchmarks import records
from benchmarks.cases import ALL, BOTH, OPERATIONS, Case
from benchmarks.gpu import __main__, _children, ncu, sanitizer, suite, tests, workload
from benchmarks.limits import bytes_moved


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    result = python("-m", "benchmarks.gpu", "--out", out, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2, result.stderr
    assert "no GPU" in result.stdout
    assert not out.exists()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources that nobody installed."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    for folder in ("python", "triton_kernels", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.mark.parametrize("options", [("-I", "-S"), ()], ids=["nothing installed", "installed"])
def test_the_tree_needs_no_installation(tree, options):
    code = f"""
import sys
sys.path[:0] = [{str(tree)!r}]
sys.path += [{sysconfig.get_path("purelib")!r}]
import benchmarks.gpu.__main__, benchmarks.gpu.workload, benchmarks.suites, benchmarks.table
import fused_mi.triton_kernels.moments
print(fused_mi.__file__, fused_mi.triton_kernels.__file__, fused_mi.triton_kernels.moments.__file__)
print(*sys.modules)
"""
    result = python(*options, "-c", code, cwd=tree.parent)
    assert result.returncode == 0, result.stderr
    files, modules = result.stdout.splitlines()
    assert all(Path(file).is_relative_to(tree) for file in files.split())
    assert not {"pytest", "hypothesis", "rich", "scipy", "matplotlib"} & set(modules.split())


def test_children_report_rows_errors_and_lost_time():
    commands = {
        "good": [sys.executable, "-c", f"print('{_children._MARK}{{\"name\": 1}}')"],
        "bad": [sys.executable, "-c", "raise SystemExit('no')"],
        "slow": [sys.executable, "-c", "import time; time.sleep(60)"],
    }
    events = list(_children.run(commands, 1.5))
    assert [e for e in events if not isinstance(e, _children.Ended)] == [{"name": 1}]
    ended = {e.name: e for e in events if isinstance(e, _children.Ended)}
    assert ended["good"].returncode == 0
    assert ended["good"].stdout == ""
    assert (ended["bad"].returncode, ended["bad"].tail) == (1, "no")
    assert ended["slow"].returncode is None


NCU = """==PROF== Disconnected
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum",\
"gpu__time_duration.sum","launch__registers_per_thread"
"","","","byte","byte","ns","register/thread"
"0","1","_least_kernel","1,000","24","2,000","32"
"1","1","gradient_kernel","500","1500","10","64"
"""


def test_reports_of_ncu():
    kernels = ncu.parsed(NCU)
    assert [k["kernel"] for k in kernels] == ["_least_kernel", "gradient_kernel"]
    assert (kernels[0]["read"], kernels[0]["ns"], kernels[1]["registers"]) == (1000, 2000, 64)
    assert kernels[0]["active_warps_percent"] is None
    assert ncu.parsed("==ERROR== ERR_NVGPUCTRPERM") == []
    model = [
        {"kernel": "_least_kernel", "read": 500, "written": 0},
        {"kernel": "gradient_kernel", "read": 500, "written": 1000},
    ]
    row = ncu.compared(kernels, model, (2, 1, 10))
    assert (row["read"], row["written"], row["floor_bytes"]) == (1500, 1524, 800)
    first, second = row["kernels"]
    assert first["read_over_model"] == 2.0 and "written_over_model" not in first
    assert second["written_over_model"] == 1.5
    (kernel, _) = ncu.compared(ncu.parsed(NCU), model[::-1], (2, 1, 10))["kernels"]
    assert "read_over_model" not in kernel


def test_the_model_of_the_traffic_meets_the_launches():
    rows = list(workload.traffic((16, 3, 4096), "cpu"))
    assert [row["kernel"] for row in rows][-2:] == ["gradient_kernel", "gradient_of_pairs_kernel"]
    floor = bytes_moved(Case("x", 16, 3, 4096))["both"]
    assert floor <= sum(row["read"] + row["written"] for row in rows) < 2 * floor


def test_the_sanitizer_sees_every_option(monkeypatch):
    seen = set()
    monkeypatch.setattr(
        workload,
        "evaluate",
        lambda case, device, combine=True: seen.add(
            (case.estimator, case.pairing, case.dtype, case.op, combine)
        ),
    )
    workload.small("cpu")
    of_case = [BOTH, PAIRINGS, ("float32", "bfloat16"), OPERATIONS[:1], (True, False)]
    assert seen > set(itertools.product(*of_case))
    assert {op for *_, op, _ in seen} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("stdout", "code", "passed"),
    [
        (f"{sanitizer.DONE}\n========= ERROR SUMMARY: 0 errors", 0, True),
        (f"{sanitizer.DONE}\n= RACECHECK SUMMARY: 0 hazards displayed (0 errors)", 0, True),
        (f"{sanitizer.DONE}\n========= ERROR SUMMARY: 10 errors", 3, False),
        ("========= ERROR SUMMARY: 0 errors", 1, False),
        ("Unable to find injection library", 1, None),
        ("", None, None),
    ],
)
def test_verdict_of_the_sanitizer(stdout, code, passed):
    ended = _children.Ended("memcheck", code, stdout, "")
    assert sanitizer.verdict(ended)["passed"] is passed


def test_the_tests_of_a_tree_that_nobody_installed(tree):
    """By the plugin that hands on each result; failures and what never ran have names."""
    (tree / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tree / "tests" / "test_slow.py").write_text(
        "import time, fused_mi\n"
        "def test_good(): assert 'tree' in fused_mi.__file__\n"
        "def test_bad(): assert fused_mi is None\n"
        "def test_slow(): time.sleep(600)\n"
        "def test_last(): pass\n"
    )
    # A plugin of the machine, which no test has asked for.
    (tree / "foreign.py").write_text("raise RuntimeError('a plugin of the machine was loaded')\n")
    (tree / "foreign-1.dist-info").mkdir()
    (tree / "foreign-1.dist-info" / "METADATA").write_text("Name: foreign\nVersion: 1\n")
    (tree / "foreign-1.dist-info" / "entry_points.txt").write_text(
        "[pytest11]\nforeign = foreign\n"
    )
    code = f"""
import os, sys
os.chdir({str(tree)!r})
sys.path[:0] = [{str(tree)!r}]
sys.path += [{sysconfig.get_path("purelib")!r}]
import pytest
pytest.main(sys.argv[1:])
"""
    options = ["-p", "benchmarks.gpu.log", "-q", "-p", "no:cacheprovider", "tests/test_slow.py"]
    found = {}
    for row in tests.rows(15, [sys.executable, "-I", "-S", "-c", code, *options]):
        found[row["name"].split("::")[-1]] = row
    assert found["test_good"]["passed"] is True, found
    assert found["test_bad"]["passed"] is False and "assert" in found["test_bad"]["message"]
    for name in ("test_slow", "test_last"):
        assert found[name]["passed"] is None and "never ran" in found[name]["message"]


def test_every_file_of_the_tests_is_there_and_has_a_mark():
    for name in tests.files():
        assert "every_" in (ROOT / name).read_text(), name
    for file in {*(ROOT / "tests").rglob("test_*.py")} - {Path(__file__)}:
        marked = "mark.every_" in file.read_text()
        assert not marked or file.relative_to(ROOT).as_posix() in tests.files(), file


def test_each_row_is_saved_at_once(tmp_path, capsys):
    path = tmp_path / "new" / "a.jsonl"

    def first(seconds, file):
        assert file.name == "a.records.jsonl"
        yield {"name": "a", "passed": True}
        assert len(path.read_text().splitlines()) == 1
        yield {"name": "as small as it should be", "met": False}
        yield {"name": "b", "passed": False, "message": "why"}

    def second(seconds, file):
        assert 2.5 < seconds <= 3.0  # what the first phase has left is added
        yield {"name": "memcheck", "passed": None, "message": "not run: no reason"}
        yield {"name": "as fast as it should be", "met": False}

    phases = [__main__.Phase("first", 1, first), __main__.Phase("second", 2, second)]
    rows = __main__.perform(phases, path)
    assert [row.get("passed") for row in rows] == [True, None, False, None, None]
    saved = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(saved) == 5 + 2 and saved[1]["phase"] == "first"
    said = capsys.readouterr().out
    for part in (
        "FAILED b: why",
        "not run: no reason",
        "MISSED: as small",
        "as fast as it should be: withheld",
        "second: done",
    ):
        assert part in said


def test_nine_minutes():
    assert sum(phase.seconds for phase in __main__.PHASES) <= 540


def record(shape, contestant, estimator="jensen", **more):
    made = records.Record(
        "case", "group", "mutual information", "both", contestant, "backend", estimator,
        "sub_batch", shape, "float32", 0.0, ALL, **more,
    )  # fmt: skip
    return made


def test_targets():
    found = [
        record(suite.LLM, "triton", bytes=0.9e6, copy=1.0, samples=(1.0,)),
        record(suite.BERT, "triton", bytes=0.5e6, copy=1.0, samples=(1.0,)),
        record(suite.BERT, "linear form, compiled", samples=(1.6,)),
        record(
            suite.BERT, "triton kernels", "logsumexp", fma=5e4, kernels={"distances_kernel": 1e3}
        ),
    ]
    text = [(name.split(" (")[-1], met) for name, met in suite.targets(found)]
    assert text == [("1.11)", True), ("2.00)", False), ("1.60)", True), ("52%)", True)]
    assert list(suite.targets([])) == []


def test_the_benchmarks_of_a_machine_without_a_gpu_fail(tmp_path):
    *_, last = suite.rows(60, tmp_path / "r.jsonl")
    assert last["passed"] is False and "no GPU that torch can use" in last["message"]
