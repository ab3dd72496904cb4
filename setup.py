"""Folders that are packages under other names, and the build of the CPU library; everything else
stands in pyproject.toml.

The library is optional. `FUSED_MI_BUILD_CPU=0` leaves it out, `=1` makes its absence an error;
otherwise an installation without a compiler or without torch's headers succeeds and says so. It is
loaded by torch, not imported: one file serves every Python and every torch since 2.10.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CPU = Path("csrc", "cpu")
# Compiled once for each instruction path.
KERNELS = (
    "variance",
    "moments",
    "moments_backward",
    "merge",
    "pairs",
    "pairs_backward",
    "logsumexp",
    "online",
)
OPERATORS = ("operators", "estimators")
LIBRARY = "libfused_mi_cpu.so"
X86 = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
    " -mprefer-vector-width=512",
}
PATHS = {"plain": "", **(X86 if platform.machine() in ("x86_64", "AMD64") else {})}
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
TARGET = (2, 10)  # the oldest torch that can load the library
DEFINES = [f"-DTORCH_TARGET_VERSION=0x{TARGET[0]:02x}{TARGET[1]:02x}000000000000"]


def torch_folder():
    """Where torch is installed, without importing it: an isolated build does not see it."""
    prefixes = [sys.prefix, os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX")]
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if Path(folder, "python3").exists():
            prefixes += [Path(folder).parent, Path(folder, "python3").resolve().parent.parent]
    sites = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    for prefix in filter(None, [*prefixes, sys.base_prefix]):
        sites += sorted(Path(prefix).glob("lib/python3*/*-packages"))
    for torch in (Path(site, "torch") for site in sites):
        if (torch / "include/torch/csrc/stable/library.h").exists():
            found = re.search(r"__version__ = '(\d+)\.(\d+)", (torch / "version.py").read_text())
            if found and tuple(map(int, found.groups())) >= TARGET:
                return torch
    return None


def compiler():
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def missing():
    """Why the library cannot be built here, or None."""
    if os.environ.get("FUSED_MI_BUILD_CPU") == "0":
        return "FUSED_MI_BUILD_CPU=0"
    if compiler() is None:
        return "there is no C++ compiler"
    if torch_folder() is None:
        return "torch's headers (2.10 or later) were not found in the target environment"
    return None


class BuildLibrary(build_ext):
    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def build_extension(self, ext):
        output = Path(self.build_lib, self.get_ext_filename(ext.name)).absolute()
        try:
            build_library(Path(self.build_temp).absolute(), output)
        except subprocess.CalledProcessError as error:
            if os.environ.get("FUSED_MI_BUILD_CPU") == "1":
                raise
            output.unlink(missing_ok=True)
            print(f"fused_mi: no CPU library, plain torch serves CPUs: {error}", file=sys.stderr)


def build_library(objects, output):
    """Compile and link, by ninja where there is one: only what changed."""
    torch, cxx = torch_folder(), compiler()
    objects.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    headers = ["-isystem", str(torch / "include"), *DEFINES]
    commands = {objects / f"{name}.o": (CPU / f"{name}.cpp", headers) for name in OPERATORS}
    for kernel in KERNELS:
        for path, flags in PATHS.items():
            of_path = [f"-DFUSED_MI_PATH={path}", *flags.split()]
            commands[objects / f"{kernel}.{path}.o"] = (CPU / f"{kernel}.cpp", of_path)
    compile_all = {
        o: [
            cxx,
            *FLAGS,
            *flags,
            "-MMD",
            "-MF",
            f"{o}.d",
            "-c",
            str(source.absolute()),
            "-o",
            str(o),
        ]
        for o, (source, flags) in commands.items()
    }
    link = [cxx, "-shared", "-o", str(output), *map(str, compile_all)]
    link += [f"-L{torch / 'lib'}", "-ltorch_cpu"]
    if shutil.which("ninja"):
        lines = ["rule run", " command = $command", " depfile = $depfile", " deps = gcc"]
        lines += ["rule link", " command = $command"]
        for o, command in compile_all.items():
            lines += [f"build {quoted(o)}: run {quoted(commands[o][0].absolute())}"]
            lines += [f" depfile = {o}.d", f" command = {shell(command)}"]
        lines += [f"build {quoted(output)}: link {' '.join(map(quoted, compile_all))}"]
        lines += [f" command = {shell(link)}", ""]
        (objects / "build.ninja").write_text("\n".join(lines))
        subprocess.run(["ninja", "-C", str(objects)], check=True)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(lambda command: subprocess.run(command, check=True), compile_all.values())
            )
        subprocess.run(link, check=True)


def quoted(path):
    return re.sub(r"([$ :])", r"$\1", str(path))


def shell(command):
    return subprocess.list2cmdline(command).replace("$", "$$")


class Wheel(bdist_wheel):
    def get_tag(self):
        python, abi, machine = super().get_tag()
        return ("py3", "none", machine) if self.distribution.ext_modules else (python, abi, machine)


reason = missing()
if reason and os.environ.get("FUSED_MI_BUILD_CPU") == "1":
    raise SystemExit(f"fused_mi: FUSED_MI_BUILD_CPU=1, but {reason}")
if reason:
    print(f"fused_mi: no CPU library, plain torch serves CPUs: {reason}", file=sys.stderr)

setup(
    # The Triton project has a package called triton_kernels: ours must not be importable as that.
    package_dir={"": "python", "fused_mi.triton_kernels": "triton_kernels"},
    packages=[*find_packages("python"), "fused_mi.triton_kernels"],
    ext_modules=[]
    if reason
    else [Extension("fused_mi.cpu.library", [str(CPU / "operators.cpp")], optional=True)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
