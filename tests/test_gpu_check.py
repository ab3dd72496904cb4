"""`make gpu` as far as it goes without a GPU: what it says there, its parts, and its checks in the
interpreter of the kernels."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from cases import MASK, PAIRINGS, mi_inputs, value_and_gradients
from oracle import LOG_DETERMINANT, MAHALANOBIS, STD_LOG, TOTAL, mutual_information

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peers  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    __main__,
    _children,
    _loss,
    _measure,
    _report,
    _rule10,
    ncu,
    sanitizer,
    timings,
    workload,
)

REPORT = {
    "commit": "abc",
    "started": "2030-01-02T03:04:05+00:00",
    "device": {"name": "Some GPU 80GB"},
    "versions": {},
}


def python(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    result = python("-m", "benchmarks.gpu", "--out", out, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
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
import benchmarks.gpu.__main__, benchmarks.gpu.workload, fused_mi, fused_mi.triton_kernels.moments
print(fused_mi.__file__, fused_mi.triton_kernels.__file__, fused_mi.triton_kernels.moments.__file__)
print(*sys.modules)
"""
    result = python(*options, "-c", code, cwd=tree.parent)
    assert result.returncode == 0, result.stderr
    files, modules = result.stdout.splitlines()
    assert all(Path(file).is_relative_to(tree) for file in files.split())
    assert not {"pytest", "hypothesis", "rich", "typer"} & set(modules.split())


def test_checks_pass_in_the_interpreter():
    job = _children.Job("masks", _children.python("correctness", "masks", "--device", "cpu"))
    *rows, ended = _children.run([job], 1, 200)
    assert ended.returncode == 0, ended.tail
    assert len(rows) >= 12
    assert [row for _, row in rows if row["passed"] is not True] == []


def plain(inputs, **options):
    return _loss.evaluate(inputs, backend="reference", **options)


@pytest.mark.parametrize("most", [1 << 22, 100], ids=["whole", "sample"])
def test_a_wrong_result_is_found(monkeypatch, most):
    monkeypatch.setattr(_rule10, "_PAIR_ELEMENTS", most)
    inputs = _loss.small_inputs((6, 4, 9), "cpu")
    found = plain(inputs)
    assert _rule10.rule10(inputs, found).passed
    means, stds, *others = found.gradients
    for wrong_element in (torch.nan, torch.inf, stds[-1, -1, -1] + 1e-3 * stds.abs().max()):
        wrong = stds.clone()
        wrong[-1, -1, -1] = wrong_element
        gradients = (means, wrong, *others)
        outcome = _rule10.rule10(inputs, found._replace(gradients=gradients))
        assert not outcome.passed
        assert outcome.what == "gradient of stds"
    wrong = found._replace(value=found.value * 1.001)
    assert _rule10.rule10(inputs, wrong).what == "value"


@pytest.mark.parametrize("entry", [MAHALANOBIS, LOG_DETERMINANT, STD_LOG])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_plain_implementation_passes(pairing, entry):
    inputs = _loss.small_inputs((6, 3, 4), "cpu")
    found = plain(inputs, pairing=pairing, entry=entry)
    assert _rule10.rule10(inputs, found, pairing=pairing, entry=entry).passed


@pytest.mark.parametrize("layout", _loss.LAYOUTS)
def test_layouts_keep_values_and_are_no_copies(layout):
    inputs = _loss.small_inputs((4, 3, 5), "cpu")
    for before, after in zip(inputs, _loss.laid_out(inputs, layout), strict=True):
        expanded = 0 in after.stride()
        assert torch.equal(before[:1] if expanded else before, after[:1] if expanded else after)
    assert not _loss.laid_out(inputs, layout)[0].is_contiguous()


def test_large_inputs_have_the_least_stds_where_a_sample_looks():
    means, stds, mask, clean, noisy = _loss.large_inputs((4, 3, 5), "cpu", torch.float32)
    assert stds.amin() == stds[0, 0, 0] == stds[3, 0, 0]
    assert mask[:, 0].all()
    assert 0.2 < ((noisy - clean - means) / stds).std() < 2


@pytest.mark.parametrize("form", [peers.pairs, peers.linear])
def test_peers_compute_the_loss(form):
    inputs = mi_inputs(8, 3, 4, offset=3.0)
    want, want_grads = value_and_gradients(
        lambda t: mutual_information(t, eps_dtype=torch.float32)[TOTAL], inputs
    )
    single = [t if i == MASK else t.float() for i, t in enumerate(inputs)]
    value, grads = value_and_gradients(lambda t: form(*t), single)
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=0)
    for a, b in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_children_report_rows_errors_and_lost_time():
    jobs = [
        _children.Job("good", [sys.executable, "-c", f"print('{_children._MARK}{{\"name\": 1}}')"]),
        _children.Job("bad", [sys.executable, "-c", "raise SystemExit('no')"]),
        _children.Job("slow", [sys.executable, "-c", "import time; time.sleep(60)"]),
        _children.Job("never", ["false"]),
    ]
    events = list(_children.run(jobs, 3, 1.5))
    assert [e[1] for e in events if not isinstance(e, _children.Ended)] == [{"name": 1}]
    ended = {e.job.name: e for e in events if isinstance(e, _children.Ended)}
    assert ended["good"].returncode == 0
    assert ended["good"].stdout == ""
    assert (ended["bad"].returncode, ended["bad"].tail) == (1, "no")
    assert ended["slow"].returncode is None


def test_timings_of_a_tiny_case(monkeypatch):
    right, wrong = "linear form, eager", "pair formula, eager"
    monkeypatch.setitem(timings.PEERS, wrong, lambda *t: peers.pairs(*t) * 1.01)
    monkeypatch.setattr(_measure, "_SECONDS", 0.0)
    case = timings.Case((4, 1, 3), torch.float32, (right, wrong))
    alone, row = (timings.judged(row, True) for row in timings.cases(60, "cpu", [case]))
    assert list(alone["contestants"]) == [timings.OURS]
    assert {name: found["agrees"] for name, found in row["contestants"].items()} == {
        timings.OURS: True,
        right: True,
        wrong: False,
    }
    ms = row["contestants"][timings.OURS]["ms"]
    assert row["floor_bytes"] == {"forward": 7 * 24, "backward": 13 * 24, "both": 20 * 24}
    assert ms["both"]["q1"] <= ms["both"]["median"] <= ms["both"]["q3"]
    assert ms["both"]["of_copy"] == pytest.approx(1 / ms["both"]["over_floor"])
    assert "ms" not in row["contestants"][wrong]
    assert list(row["speedups"]) == [right]
    assert timings.judged(row, False)["speedups"].startswith("withheld")


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
    assert row["by_launch"][0] == {
        "kernel": "_least_kernel",
        "read_over_model": 2.0,
        "written_over_model": None,
    }
    assert row["by_launch"][1]["written_over_model"] == 1.5
    assert "by_launch" not in ncu.compared(kernels, model[::-1], (2, 1, 10))


def test_the_model_of_the_traffic_meets_the_launches():
    rows = list(workload.traffic((8, 3, 4096), "cpu"))
    assert [row["kernel"] for row in rows][-4:] == [
        *["gradient_kernel"] * 2,
        *["gradient_of_pairs_kernel"] * 2,
    ]
    floor = timings.FLOOR["both"] * 4 * 3 * 4096 * 4
    assert floor <= sum(row["read"] + row["written"] for row in rows) < 2 * floor


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
    ended = _children.Ended(_children.Job("memcheck", []), code, stdout, "", 1.0)
    assert sanitizer.verdict(ended)["passed"] is passed


def test_each_row_is_saved_at_once(tmp_path):
    path = _report.path_of(REPORT, tmp_path / "new")
    assert path.name == "gpu-some-gpu-80gb-20300102T030405-abc.json"

    def correctness(report, seconds):
        yield {"name": "a: b", "passed": True, "error": 1.0, "bound": 2.0}
        assert len(json.loads(path.read_text())["phases"]["correctness"]["rows"]) == 1
        yield {"name": "a: c", "passed": False, "error": torch.inf, "bound": 1.0, "message": "why"}

    def more(report, seconds):
        assert _report.failed(report)
        assert 2.5 < seconds <= 3.0  # what the first phase has left is added
        yield {"name": "memcheck", "passed": None, "message": "not run: no reason"}

    report = {**REPORT, "phases": {}}
    phases = [__main__.Phase("correctness", 1, correctness), __main__.Phase("sanitizer", 2, more)]
    __main__.perform(phases, report, path)
    saved = json.loads(path.read_text())
    assert list(saved["phases"]) == ["correctness", "sanitizer"]
    assert saved["phases"]["correctness"]["rows"][1]["error"] == "inf"
    text = _report.summary(report)
    assert "FAILED a: c: why, error inf, bound 1.000e+00" in text
    assert "not run: no reason" in text


def test_summary_of_timings_and_traffic():
    ms = {"median": 1.0, "q1": 0.9, "q3": 1.2, "samples": 5}
    four = ("forward", "backward", "both", "host")
    row = {
        "name": "case",
        "shape": timings.TARGETS[1],
        "dtype": "float32",
        "floor_bytes": {"forward": 7e6, "backward": 13e6, "both": 20e6},
        "copy": {"bytes": 40e6, "ms": dict(ms)},
        "contestants": {
            timings.OURS: {"agrees": True, "extra_bytes": 0, "ms": {k: dict(ms) for k in four}},
            timings.LINEAR: {"agrees": True, "ms": {k: {**ms, "median": 1.6} for k in four}},
            timings.PAIRS: {"agrees": False, "message": "not run: out of memory"},
        },
        "kernels": [{"kernel": "gradient_kernel", "us": 10.0, "launches": 2.0}],
    }
    judged = timings.judged(row, green=True)
    assert judged["speedups"] == {timings.LINEAR: 1.6}
    assert judged["contestants"][timings.OURS]["ms"]["both"]["over_floor"] == 2.0
    assert list(judged["targets"].values()) == [False, True]
    phases = {
        "timings": {"seconds": 1, "rows": [judged, {"name": "the rest", "message": "cut off"}]},
        "ncu": {"seconds": 1, "rows": [{"name": "x", "kernels": ncu.parsed(NCU)}]},
    }
    text = _report.summary({**REPORT, "phases": phases})
    for part in ("out of memory", "1.60", "MISSED", "gradient_kernel", "_least_kernel", "cut off"):
        assert part in text
