"""What is installed: contents of wheel and sdist, the editable mapping, a cheap import."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import fused_mi
import pytest
import torch
from cases import ALL_CASES

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ("fused_mi/losses.py", "fused_mi/triton_kernels/__init__.py", "fused_mi/py.typed")
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def run(*command, **options):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources: builds write into their folder."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    return copy


def stub_compiler(folder, name="c++", fails=False):
    """One that writes down how it was called, and empty files."""
    folder.mkdir()
    script = folder / name
    script.write_text(
        f"#!/bin/sh\necho \"$@\" >> '{folder}/calls'\n"
        + 'while [ $# -gt 0 ]; do case $1 in -o|-MF) : > "$2";; esac; shift; done\n'
        + ("exit 1\n" if fails else "")
    )
    script.chmod(0o755)
    return script


def calls(compiler):
    log = compiler.parent / "calls"
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(scope="module")
def wheel(tree):
    """A wheel built as pip does it, isolated from this environment: no torch is there. Its library
    is an empty file: test_sdist_builds_the_same_wheel compiles one."""
    out = tree.parent / "wheel"
    compiler = stub_compiler(tree.parent / "stub")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, tree),
        env={**os.environ, "CXX": str(compiler)},
    )
    assert len(calls(compiler)) > 1
    (found,) = out.iterdir()
    return found


def modules_after(statement, folder):
    """Names of the modules that a fresh interpreter in `folder` has loaded after `statement`."""
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(run(sys.executable, "-c", code, cwd=folder).split())


def test_import_loads_nothing_of_the_extras(tmp_path):
    loaded = modules_after("import fused_mi", tmp_path) - modules_after("import torch", tmp_path)
    heavy = {"triton", "triton_kernels", "transformers", "typer", "rich", "matplotlib"}
    heavy |= {"accelerate", "gguf", "tensorboard", "safetensors", "sentence_transformers"}
    heavy |= {"fused_mi.triton_kernels"}
    assert "fused_mi.losses" in loaded
    assert not loaded & heavy
    assert not any(name.startswith("fused_mi.train") for name in loaded)


def test_import_touches_no_device(tmp_path):
    code = "import fused_mi, torch; print(torch.cuda.is_initialized())"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "False"


def test_kernels_are_importable_inside_the_package_only():
    importlib.import_module("fused_mi.triton_kernels")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import triton_kernels"
    result = subprocess.run(
        [sys.executable, "-c", code, ROOT], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "ImportError: import fused_mi.triton_kernels instead" in result.stderr


def test_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    # One for every Python; which C library it needs is for auditwheel to say.
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"fused_mi-{fused_mi.__version__}-py3-none-{platform}.whl"
    info = f"fused_mi-{fused_mi.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"fused_mi", info}
    assert set(INSTALLED) <= set(names)
    sources = {
        path.relative_to(ROOT / "python").as_posix() for path in (ROOT / "python").rglob("*.py")
    }
    assert sources <= set(names)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert [line for line in required if "extra ==" not in line] == ["Requires-Dist: torch>=2.10"]
    assert "License-Expression: BSD-3-Clause" in metadata
    assert f"{info}/licenses/LICENSE" in names


def test_wheel_works_from_its_own_folder(wheel, tmp_path):
    """Imported from where it was unpacked, whatever else is installed here."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fused_mi; "
        "import fused_mi.triton_kernels as t; "
        "print(fused_mi.__file__, t.__file__, fused_mi.__version__)"
    )
    package, kernels, version = run(sys.executable, "-c", code, site, cwd=tmp_path).split()
    assert Path(package).is_relative_to(site)
    assert Path(kernels).is_relative_to(site)
    assert version == fused_mi.__version__


def test_sdist_builds_the_same_wheel(tree, wheel):
    out = tree.parent / "sdist"
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out, tree)
    (sdist,) = out.iterdir()
    top = f"fused_mi-{fused_mi.__version__}"
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
        # What Python 3.11.4 has and 3.11.0 has not.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(out)
    kept = [
        "csrc/README.md",
        "triton_kernels/__init__.py",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
        "mkdocs.yml",
    ]
    kept += ["tests/test_packaging.py", "docs/mathematics.md", "python/fused_mi/py.typed"]
    assert {f"{top}/{name}" for name in kept} <= names

    again = tree.parent / "again"
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    variables = {} if compiler else {"CXX": str(tree.parent / "stub/c++")}
    if compiler and not ALL_CASES:  # with optimisation it was compiled when it was installed
        quick = tree.parent / "quick-c++"
        quick.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
        quick.chmod(0o755)
        variables = {"CXX": str(quick)}
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", again, out / top),
        env={**os.environ, **variables},
    )
    (rebuilt,) = again.iterdir()
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(rebuilt) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def build_library(tree, tmp_path, path, python=sys.executable, **variables):
    """What setup.py does about the library where PATH is `path`; and the files that it made."""
    pytest.importorskip("setuptools")
    dropped = ["CXX", "VIRTUAL_ENV", "CONDA_PREFIX"]
    dropped += [name for name in os.environ if name.startswith("FUSED_MI_")]
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [
            *(python, "setup.py", "--quiet", "build_ext"),
            *("--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"),
        ],
        cwd=tree, env={**inherited, "PATH": str(path), **variables}, capture_output=True, text=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("fused_mi: ")]
    return done.returncode, said, [file.name for file in tmp_path.glob("lib/**/*.so")]


@pytest.mark.parametrize("ninja", [False, True])
@pytest.mark.parametrize("named", [False, True], ids=["on PATH", "CXX"])
def test_library_compiles_with_and_without_ninja(tree, tmp_path, ninja, named):
    compiler = stub_compiler(tmp_path / "bin", "my-c++" if named else "c++")
    if ninja:
        found = shutil.which("ninja")
        if found is None:
            pytest.skip("no ninja")
        (compiler.parent / "ninja").symlink_to(found)
    variables = {"CXX": str(compiler)} if named else {}
    code, said, made = build_library(tree, tmp_path, compiler.parent, **variables)
    assert (code, said, made) == (0, [], ["libfused_mi_cpu.so"])
    *compiled, linked = calls(compiler)
    sources = {re.search(r"(\w+)\.cpp", call).group(1) for call in compiled}
    assert sources == {file.stem for file in (tree / "csrc/cpu").glob("*.cpp")}
    assert "-shared" in linked
    assert all(f"-fmacro-prefix-map={tree}/=" in call for call in compiled)
    assert sum(word.endswith(".o") for word in linked.split()) == len(compiled)


def test_without_a_compiler_the_installation_says_so(tree, tmp_path):
    (tmp_path / "bin").mkdir()
    line = "fused_mi: no CPU library, plain torch serves CPUs: there is no C++ compiler"
    assert build_library(tree, tmp_path, tmp_path / "bin") == (0, [line], [])
    code, said, made = build_library(tree, tmp_path, tmp_path / "bin", FUSED_MI_BUILD_CPU="1")
    assert code != 0
    assert said == ["fused_mi: FUSED_MI_BUILD_CPU=1, but there is no C++ compiler"]
    assert not made


def test_a_compiler_that_fails(tree, tmp_path):
    compiler = stub_compiler(tmp_path / "bin", fails=True)
    code, (line,), made = build_library(tree, tmp_path, compiler.parent)
    assert code == 0
    assert line.startswith("fused_mi: no CPU library, plain torch serves CPUs: ")
    assert not made
    code, _, made = build_library(tree, tmp_path, compiler.parent, FUSED_MI_BUILD_CPU="1")
    assert code != 0
    assert not made


def test_the_library_can_be_left_out(tree, tmp_path):
    compiler = stub_compiler(tmp_path / "bin")
    line = "fused_mi: no CPU library, plain torch serves CPUs: FUSED_MI_BUILD_CPU=0"
    found = build_library(tree, tmp_path, compiler.parent, FUSED_MI_BUILD_CPU="0")
    assert found == (0, [line], [])
    assert not calls(compiler)


def test_the_cuda_library(tree, tmp_path):
    """By itself, only where torch has CUDA; for the wanted GPUs, without one and without asking."""
    compiler = stub_compiler(tmp_path / "bin")
    without = build_library(tree, tmp_path, compiler.parent, FUSED_MI_BUILD_CUDA="1")
    assert without == (1, ["fused_mi: FUSED_MI_BUILD_CUDA=1, but there is no nvcc"], [])
    shutil.copy(compiler, compiler.parent / "nvcc")
    wanted = {"FUSED_MI_BUILD_CPU": "0", "FUSED_MI_CUDA_ARCHS": "80 90"}
    by_itself = build_library(tree, tmp_path, compiler.parent, **wanted)
    with_cuda = torch.version.cuda is not None
    assert by_itself[::2] == (0, ["libfused_mi_cuda.so"] if with_cuda else [])
    assert len(calls(compiler)) > 0 if with_cuda else not calls(compiler)
    built = build_library(tree, tmp_path, compiler.parent, **wanted, FUSED_MI_BUILD_CUDA="1")
    assert built[::2] == (0, ["libfused_mi_cuda.so"])
    found = [call for call in calls(compiler) if "-gencode" in call]
    sources = {Path(re.search(r"\S+\.cu\b", call).group()).name for call in found}
    assert sources == {file.name for file in (tree / "csrc/cuda").glob("*.cu")}
    codes = set(re.findall(r"(?<=,)code=\w+", " ".join(found)))
    assert codes == {"code=sm_80", "code=sm_90", "code=compute_90"}


def test_the_emulated_library(tree, tmp_path):
    compiler = stub_compiler(tmp_path / "bin")
    wanted = {"FUSED_MI_BUILD_CPU": "0", "FUSED_MI_BUILD_EMULATED": "1"}
    _, _, made = build_library(tree, tmp_path, compiler.parent, **wanted)
    assert made == ["libfused_mi_emulated.so"]
    sources = {
        Path(re.search(r"\S+\.(cu|cpp)\b", call).group()).name for call in calls(compiler)[:-1]
    }
    folder = tree / "csrc/cuda"
    assert sources == {f.name for f in folder.glob("*.c[up]*")} | {"model.cpp"}


def test_without_headers_of_torch(tree, tmp_path):
    """In an environment that has setuptools and nothing else."""
    pytest.importorskip("setuptools")
    if any(Path(sys.base_prefix).glob("lib/python3*/*-packages/torch")):
        pytest.skip("torch is installed outside of environments")
    compiler = stub_compiler(tmp_path / "bin")
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    for package in ("setuptools", "_distutils_hack"):
        (site / package).symlink_to(Path(importlib.import_module(package).__file__).parent)
    code, (line,), made = build_library(tree, tmp_path, compiler.parent, python)
    assert code == 0
    assert "torch's headers (2.10 or later) were not found" in line
    assert not made
    assert not calls(compiler)
