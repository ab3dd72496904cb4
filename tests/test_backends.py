"""Which backend serves: by itself, forced, and when Triton is missing or broken."""

import logging
import os
import subprocess
import sys
import textwrap

import fused_mi
import pytest
import torch
from cases import mi, mi_inputs
from fused_mi.ops import _backends, _triton

LOSS = """
import sys, torch, fused_mi
t = torch.ones(4, 2, 3)
mask = torch.ones(4, 2, dtype=torch.bool)
print(fused_mi.mutual_information_sub_batch(t, t, mask, t, t).item())
"""


def python(code, tmp_path=None, **environment):
    """Run `code` in a process of its own; variables that are None are unset."""
    variables = {**os.environ, **environment}
    if tmp_path is not None:
        variables["PYTHONPATH"] = str(tmp_path)
    variables = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=variables, capture_output=True, text=True
    )


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("FUSED_MI_BACKEND", raising=False)
    _backends._choose.cache_clear()
    yield
    _backends._choose.cache_clear()


def test_every_backend_is_listed_with_a_reason():
    listed = fused_mi.backends()
    assert [b.name for b in listed] == list(_backends.BACKENDS)
    assert all(b.reason for b in listed)
    assert listed[-1] == ("reference", True, "plain torch, on any device")


def test_cpu_tensors_are_not_interpreted_by_themselves():
    choices = fused_mi.explain(torch.ones(1))
    assert [c.operator for c in choices] == ["variance", "moments", "pairs", "logsumexp"]
    assert {c.backend for c in choices} <= {"cpu", "reference"}
    assert "only when forced" in choices[1].reason


def test_the_choice_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="fused_mi"):
        for _ in range(3):
            mi(mi_inputs())
    served = [r for r in caplog.records if r.getMessage().startswith("moments on cpu")]
    assert len(served) == 1


@pytest.fixture
def _no_pairs(monkeypatch):
    """As if there were no Triton kernel of the pairs."""
    monkeypatch.setattr(_triton, "OPERATORS", ("variance", "moments"))


@pytest.mark.usefixtures("_no_pairs")
def test_a_forced_backend_is_used_or_raises():
    inputs = mi_inputs()
    with fused_mi.use_backend("triton"):
        assert {c.backend for c in map(_serving, ("variance", "moments"))} == {"triton"}
        mi(inputs)
        with pytest.raises(RuntimeError, match="'triton' was forced and cannot serve pairs"):
            mi(inputs, estimator="logsumexp")
        with fused_mi.use_backend("reference"):
            mi(inputs, estimator="logsumexp")
        # No operator: exempt.
        fused_mi.square_mahalanobis_distance(*inputs[3:], inputs[1], inputs[2])
        fused_mi.masked_negative_log_mean(inputs[1])
    assert _backends.forced() is None


def _serving(operator):
    return _backends._choose(operator, "cpu", _backends.forced())


@pytest.mark.usefixtures("_no_pairs")
def test_the_environment_forces_too_and_the_context_goes_first(monkeypatch):
    monkeypatch.setenv("FUSED_MI_BACKEND", "triton")
    assert _backends.forced() == "triton"
    with pytest.raises(RuntimeError, match="cannot serve pairs"):
        fused_mi.explain(torch.ones(1))
    with fused_mi.use_backend("reference"):
        assert {c.backend for c in fused_mi.explain(torch.ones(1))} == {"reference"}
    monkeypatch.setenv("FUSED_MI_BACKEND", "")
    assert _backends.forced() is None


def test_unknown_names_are_errors_that_list_the_known_ones(monkeypatch):
    with (
        pytest.raises(ValueError, match="use_backend: expected one of 'triton', 'cpu'"),
        fused_mi.use_backend("cuda"),
    ):
        pass
    monkeypatch.setenv("FUSED_MI_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"FUSED_MI_BACKEND: expected one of .* got 'fast'"):
        mi(mi_inputs())


def test_an_error_inside_leaves_nothing_forced():
    with pytest.raises(KeyError), fused_mi.use_backend("reference"):
        raise KeyError
    assert _backends.forced() is None


def test_a_loss_on_the_cpu_does_not_import_triton():
    done = python(LOSS + "print('triton' in sys.modules)", TRITON_INTERPRET=None)
    assert done.stdout.split()[-1] == "False", done.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no such driver')", "RuntimeError: no such driver"),
        ("raise SyntaxError('broken')", "SyntaxError: broken"),
        ("__version__ = '3.1.0'", "Triton 3.1.0 is older than 3.6"),
        ("import a_module_that_is_missing", "not installed"),
    ],
)
def test_a_broken_triton_leaves_the_plain_path(tmp_path, source, said):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text(source)
    done = python(LOSS, tmp_path)
    assert done.returncode == 0, done.stderr
    info = python(
        "import sys; sys.argv = ['', 'info']; from fused_mi.__main__ import main; main()", tmp_path
    )
    assert info.returncode == 0, info.stderr
    (line,) = [li for li in info.stdout.splitlines() if li.startswith("backend triton")]
    assert "not usable" in line
    assert said in line


def test_an_old_triton_is_refused(monkeypatch):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.5.1")
    _triton.usable.cache_clear()
    try:
        assert _triton.usable() == (False, "Triton 3.5.1 is older than 3.6")
    finally:
        _triton.usable.cache_clear()


def test_info_names_what_a_bug_report_needs():
    done = python(
        "import sys; sys.argv = ['', 'info']; from fused_mi.__main__ import main; main()",
        FUSED_MI_BACKEND="fast",
        MALLOC_TRIM_THRESHOLD_="4294967296",
    )
    assert done.returncode == 0, done.stderr
    for expected in (
        f"fused_mi                {fused_mi.__version__}",
        f"torch                   {torch.__version__}",
        "backend triton",
        "backend reference",
        "FUSED_MI_BACKEND: expected one of",
        "OMP_NUM_THREADS",
        "nvcc",
        "huge pages",
        "allocator",
        "MALLOC_TRIM_THRESHOLD_  4294967296",
    ):
        assert expected in done.stdout


def test_the_fastest_usable_backend_comes_first(monkeypatch):
    """As on a machine with a GPU: the kernels serve what they can, the plain path the rest."""

    def serves(operator, device):
        return (operator != "pairs", "" if operator != "pairs" else "there is no such kernel")

    monkeypatch.setattr(_triton, "serves", serves)
    chosen = {op: _backends._choose(op, "cuda", None) for op in _backends.OPERATORS}
    assert chosen["moments"] == ("moments", "triton", "the fastest")
    assert chosen["pairs"].backend == "reference"
    assert chosen["pairs"].reason.startswith("triton: there is no such kernel; cpu: it does not")
