"""The library of the CPU kernels: arguments that it refuses, and files that are no library."""

import json
import platform
import re
from pathlib import Path

import pytest
import torch
from cases import mi, mi_inputs
from fused_mi import use_backend
from fused_mi.cpu import _library
from processes import python

WORKS = _library.usable()[0]
pytestmark = pytest.mark.skipif(not WORKS, reason="the library was not built")


@pytest.fixture(autouse=True)
def _forced():
    with use_backend("cpu"):
        yield


@pytest.mark.parametrize("path", _library.supported() if WORKS else ())
def test_wrong_arguments_are_refused(monkeypatch, path):
    monkeypatch.setenv("FUSED_MI_CPU", path)
    _, stds, mask, *_ = mi_inputs(dtype=torch.float32, seed=16)
    raw, number = _library.operators(), _library.path()
    eps = torch.empty(())
    with pytest.raises(RuntimeError, match="last dimension must be contiguous"):
        raw.variance(stds.transpose(1, 2), mask[:, :3], 0, 3, 1.0, 0.0, 1.0, number, eps)
    with pytest.raises(RuntimeError, match="rows 0 to 9 of 6"):
        raw.variance(stds, mask, 0, 9, 1.0, 0.0, 1.0, number, eps)
    with pytest.raises(RuntimeError, match="unsupported dtype"):
        raw.variance(stds.long(), mask, 0, 3, 1.0, 0.0, 1.0, number, eps)
    with pytest.raises(RuntimeError, match="instruction path 7"):
        raw.variance(stds, mask, 0, 3, 1.0, 0.0, 1.0, 7, eps)
    with pytest.raises(RuntimeError, match="mask: expected a bool"):
        raw.variance(stds, mask.float(), 0, 3, 1.0, 0.0, 1.0, number, eps)


def test_an_unknown_instruction_path_is_refused(monkeypatch):
    monkeypatch.setenv("FUSED_MI_CPU", "mmx")
    with pytest.raises(ValueError, match="FUSED_MI_CPU: expected one of 'plain'"):
        mi(mi_inputs())


# In a process for each file, all of them forks of one that has imported torch.
LOSSES = """
import json, os, sys, torch, fused_mi, warnings
from pathlib import Path
from fused_mi._info import info
from fused_mi.cpu import _library

def loss():
    t = torch.ones(4, 2, 3)
    mask = torch.ones(4, 2, dtype=torch.bool)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            fused_mi.mutual_information_sub_batch(t, t, mask, t, t).item()
    listed = next(line for line in info().splitlines() if line.startswith("backend cpu"))
    return [str(w.message) for w in caught], listed

for name, file in json.loads(sys.argv[1]).items():
    if (child := os.fork()) == 0:
        _library.LIBRARY = Path(file)
        _library._VERSION += name == "of other sources"
        print(json.dumps([name, *loss()]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
FAULTS = {
    "missing": "was not built",
    "empty": "file too short",
    "text": "invalid ELF header",
    "cut off": "the file is cut off",
    "another": "it lacks version, paths, variance",
    "of another machine": "cannot open shared object file",
    "without a symbol": "undefined symbol: ",
    "of other sources": f"other sources: version {_library._VERSION}, not {_library._VERSION + 1}",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By fault: what a loss warns of, and what `info` lists."""
    whole = _library.LIBRARY.read_bytes()
    machine = b"\x3e" if platform.machine() == "aarch64" else b"\xb7"  # x86-64, 64-bit Arm
    wanted = re.search(rb"aoti_torch_\w+", whole).group()  # a function of torch
    contents = {
        "empty": b"",
        "text": b"#!" * 99,
        "cut off": whole[: len(whole) // 2],
        "another": Path(torch._C.__file__).read_bytes(),
        "of another machine": whole[:18] + machine + whole[19:],
        "without a symbol": whole.replace(wanted, wanted[:-1] + b"_"),
        "of other sources": whole,
    }
    folder = tmp_path_factory.mktemp("libraries")
    files = {fault: str(folder / fault / _library.LIBRARY.name) for fault in FAULTS}
    for fault, file in files.items():
        Path(file).parent.mkdir()
        if fault in contents:
            Path(file).write_bytes(contents[fault])
    done = python("-c", LOSSES, json.dumps(files), FUSED_MI_BACKEND="")
    assert done.returncode == 0, done.stderr
    found = map(json.loads, done.stdout.splitlines())
    return {name: (warned, listed) for name, warned, listed in found}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_library_that_does_not_load(said, fault):
    (warned,), listed = said[fault]  # once, for three calls
    assert FAULTS[fault] in warned
    assert FAULTS[fault] in listed
