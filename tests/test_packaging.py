"""What is installed: contents of wheel and sdist, the editable mapping, a cheap import."""

import importlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fused_mi
import pytest

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


@pytest.fixture(scope="module")
def wheel(tree):
    """A wheel built as pip does it, isolated from this environment: no torch is there."""
    out = tree.parent / "wheel"
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, tree)
    (found,) = out.iterdir()
    return found


def modules_after(statement, folder):
    """Names of the modules that a fresh interpreter in `folder` has loaded after `statement`."""
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(run(sys.executable, "-c", code, cwd=folder).split())


def test_import_loads_nothing_of_the_extras(tmp_path):
    loaded = modules_after("import fused_mi", tmp_path) - modules_after("import torch", tmp_path)
    heavy = {"triton", "triton_kernels", "transformers", "typer", "rich", "matplotlib"}
    heavy |= {"tensorboard", "safetensors", "sentence_transformers", "fused_mi.triton_kernels"}
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
    ]
    kept += ["tests/test_packaging.py", "docs/mathematics.md", "python/fused_mi/py.typed"]
    assert {f"{top}/{name}" for name in kept} <= names

    again = tree.parent / "again"
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", again, out / top)
    (rebuilt,) = again.iterdir()
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(rebuilt) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
