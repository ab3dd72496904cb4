"""Which backend serves by itself, and when Triton is missing or broken."""

import importlib
import inspect
import logging

import fused_mi
import pytest
import torch
from cases import mi, mi_inputs
from fused_mi.ops import _backends, _triton
from processes import python

LOSS = """
import sys, torch, fused_mi
t = torch.ones(4, 2, 3)
mask = torch.ones(4, 2, dtype=torch.bool)
print(fused_mi.mutual_information_sub_batch(t, t, mask, t, t).item())
"""
INFO = "import sys; sys.argv = ['', 'info']; from fused_mi.__main__ import main; main()"


pytestmark = pytest.mark.usefixtures("unforced")


def test_every_backend_is_listed_with_a_reason():
    listed = fused_mi.backends()
    assert [b.name for b in listed] == list(_backends.BACKENDS)
    assert all(b.reason for b in listed)
    assert listed[-1] == ("reference", True, "plain torch, on any device")


def test_cpu_tensors_are_not_interpreted_by_themselves():
    choices = fused_mi.explain(torch.ones(1))
    assert [c.operator for c in choices] == list(_backends.OPERATORS)
    assert {c.backend for c in choices} <= {"cpu", "reference"}
    assert choices[1].reason.startswith(
        "the fastest that serves cpu tensors; "
        "triton: its interpreter is for tests: only when forced"
    )


def test_explain_wants_tensors_on_one_device():
    with pytest.raises(TypeError, match=r"^tensors: expected at least one tensor, got none$"):
        fused_mi.explain()
    for wrong in ([torch.ones(1)], "cpu", None):
        said = rf"^tensors\[1\]: expected a tensor, got {type(wrong).__name__}$"
        with pytest.raises(TypeError, match=said):
            fused_mi.explain(torch.ones(1), wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^tensors\[1\]: expected device cpu .* got meta$"):
        fused_mi.explain(torch.ones(1), torch.ones(1, device="meta"))


def test_the_choice_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="fused_mi"):
        for _ in range(3):
            mi(mi_inputs())
    served = [r for r in caplog.records if r.getMessage().startswith("jensen on cpu")]
    assert len(served) == 1


def test_a_loss_on_the_cpu_does_not_import_triton():
    done = python("-c", LOSS + "print('triton' in sys.modules)", TRITON_INTERPRET=None)
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
    done = python("-c", f"{LOSS}\n{INFO}", PYTHONPATH=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [li for li in done.stdout.splitlines() if li.startswith("backend triton")]
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
    done = python("-c", INFO, FUSED_MI_BACKEND="fast", MALLOC_TRIM_THRESHOLD_="4294967296")
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
        return operator != "logsumexp", "there is no such kernel" * (operator == "logsumexp")

    monkeypatch.setattr(_triton, "serves", serves)
    chosen = {op: _backends._choose(op, "cuda", None) for op in _backends.OPERATORS}
    assert chosen["jensen"] == ("jensen", "triton", "the fastest that serves cuda tensors")
    assert chosen["logsumexp"].backend == "reference"
    assert chosen["logsumexp"].reason.startswith(
        "the fastest that serves cuda tensors; triton: there is no such kernel; cpu: it does not"
    )


def test_the_modules_of_all_backends_have_the_same_functions():
    """mypy checks those in Python against the protocols; here are those in Triton as well. What a
    backend's own functions pass to each other comes last, and has a default."""
    for name in ("estimators", "moments", "pairs", "logsumexp", "variance"):
        module = importlib.import_module(f"fused_mi.reference.{name}")
        for package in ("fused_mi.cpu", "fused_mi.triton_kernels"):
            other = importlib.import_module(f"{package}.{name}")
            for function in (name, f"{name}_backward", *_estimators_of(name)):
                if hasattr(module, function):
                    plain, ours = (getattr(m, function) for m in (module, other))
                    plain, ours = (inspect.signature(f).parameters for f in (plain, ours))
                    assert list(ours)[: len(plain)] == list(plain), (package, function)
                    more = list(ours.values())[len(plain) :]
                    assert all(p.default is not p.empty for p in more), (package, function)


def _estimators_of(module):
    if module != "estimators":
        return ()
    return "jensen", "jensen_backward", "logsumexp", "logsumexp_backward"


AGAIN = """
import importlib, sys, torch, fused_mi
from fused_mi.ops import _library, _operator, distances, estimators, variance

t = [torch.randn(4, 2, 3).requires_grad_() for _ in range(4)]
mask = torch.ones(4, 2, dtype=torch.bool)

def value_and_gradient(package, compiled=False):
    def loss(mu, stds, x, y):
        return package.mutual_information_sub_batch(mu, stds, mask, x, y)

    torch._dynamo.reset()
    call = torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss
    value = call(*t)
    return value.item(), torch.autograd.grad(value, t)[1].sum().item()

found = [value_and_gradient(fused_mi)]
for module in (_library, _operator, estimators, distances, variance, fused_mi.losses):
    importlib.reload(module)
found.append(value_and_gradient(importlib.reload(fused_mi), compiled=True))
for name in [name for name in sys.modules if name.startswith("fused_mi")]:
    del sys.modules[name]
import fused_mi as again
assert again is not fused_mi
found += [value_and_gradient(again), value_and_gradient(again, compiled=True)]
assert len(set(found)) == 1, found
"""


def test_operators_can_be_imported_again():
    """As a notebook does that reloads what was edited, and as a fresh import does."""
    done = python("-c", AGAIN)
    assert done.returncode == 0, done.stderr
