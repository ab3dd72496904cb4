"""Settings shared by all tests: the device, few threads, reproducible hypothesis runs.

`--device cuda` (or FUSED_MI_TEST_DEVICE) runs on a GPU what is the same on every device: the tests
marked `every_backend` and `every_device`. Of those, the ones marked `own_process` get a process
each, because an illegal access ends the use of the device.

`--all-cases` (or FUSED_MI_TEST_ALL=1) runs every combination of the options of a test, where
`covering` chooses some, and more examples of the laws.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# Before torch is there: threads that wait for work sleep, for tests share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import covering
import hypothesis
import pytest
import quick_interpreter
import torch

ROOT = Path(__file__).resolve().parent.parent
DEVICE, CHILD, ALL = "FUSED_MI_TEST_DEVICE", "FUSED_MI_TEST_CHILD", "FUSED_MI_TEST_ALL"

if importlib.util.find_spec("fused_mi") is None:  # a tree that nobody installed
    from benchmarks import _source_tree

    _source_tree.use()

import fused_mi  # noqa: E402
from fused_mi.cpu import _library  # noqa: E402
from fused_mi.ops import _backends  # noqa: E402

for _name, _examples in (("some", 25), ("all", 500)):
    hypothesis.settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )


def pytest_addoption(parser):
    default = os.environ.get(DEVICE, "cpu")
    parser.addoption("--device", default=default, help=f"cpu or cuda; default: {DEVICE}, cpu")
    given = os.environ.get(ALL, "0") != "0"
    parser.addoption("--all-cases", action="store_true", default=given, help=f"default: {ALL}")


def pytest_configure(config):
    device = config.getoption("--device")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {device}: there is no GPU that torch can use")
    os.environ[DEVICE] = device  # for cases.DEVICE, and for processes of their own
    every = config.getoption("--all-cases")
    os.environ[ALL] = str(int(every))  # for cases.ALL_CASES
    hypothesis.settings.load_profile("all" if every else "some")
    if device == "cpu":
        # Before anything imports Triton: its kernels run in the interpreter.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    else:  # else matrix products raise under `use_deterministic_algorithms`
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    kept = items
    if config.getoption("--device") != "cpu":
        marks = "every_backend", "every_device"
        kept = [item for item in items if any(map(item.get_closest_marker, marks))]
    by_name = any("[" in argument for argument in config.args)
    if not (by_name or config.getoption("--all-cases")):
        kept = covering.chosen(kept)
    left = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """On a GPU, a test marked `own_process` is run by a new interpreter, never by a fork."""
    on_gpu = pyfuncitem.config.getoption("--device") != "cpu"
    if not on_gpu or CHILD in os.environ or not pyfuncitem.get_closest_marker("own_process"):
        return None
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    child = subprocess.run(
        command, cwd=ROOT, env={**os.environ, CHILD: "1"}, capture_output=True, text=True
    )
    if child.returncode:
        pytest.fail(f"exit code {child.returncode}:\n{child.stdout[-8000:]}{child.stderr[-2000:]}")
    if "1 skipped" in child.stdout:
        pytest.skip(next(line for line in child.stdout.splitlines() if line.startswith("SKIPPED")))
    return True


@pytest.fixture(autouse=True)
def _two_threads_and_a_seed():
    quick_interpreter.patch_once()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unforced(monkeypatch):
    """No backend is forced from outside, and none is remembered."""
    monkeypatch.delenv("FUSED_MI_BACKEND", raising=False)
    _backends._choose.cache_clear()
    yield
    _backends._choose.cache_clear()


@pytest.fixture(params=_library.supported() if _library.usable()[0] else ())
def path(request, monkeypatch):
    """The CPU library, forced, on each instruction path that this machine has."""
    monkeypatch.setenv("FUSED_MI_CPU", request.param)
    with fused_mi.use_backend("cpu"):
        yield request.param
