"""Folders that are packages under other names, and the build of the compiled libraries; everything
else stands in pyproject.toml.

The libraries are optional. `FUSED_MI_BUILD_CPU=0` leaves that of the CPU out, `=1` makes its
absence an error; otherwise an installation without a compiler or without torch's headers succeeds
and says so. `FUSED_MI_BUILD_CUDA` means the same for that of CUDA, for the GPUs of
`FUSED_MI_CUDA_ARCHS`; by default it is built where there is nvcc and a torch with CUDA.
`FUSED_MI_BUILD_EMULATED=1` builds its kernels for the host as well, for tests. They are loaded by
torch, not imported: one file serves every Python and every torch since 2.10.
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
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CPU, CUDA = Path("csrc", "cpu"), Path("csrc", "cuda")
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
OPERATORS = ("operators", "estimators", "parts_operators")
CUDA_KERNELS = (
    "device",
    "prepare",
    "accumulate",
    "accumulate_alone",
    "finish",
    "gradient",
    "pairs_rows",
    "distances",
    "samples_gradient",
    "components_gradient",
    "careful",
    "logsumexp",
    "online",
    "weigh",
    "scoring",
)
CUDA_OPERATORS = (
    "plan",
    "jensen",
    "pairs",
    "logsumexp",
    "logsumexp_backward",
    "operators",
)
CUDA_ARCHS = (
    "80 90 100 120"  # binaries run on later GPUs of the same generation; the last is PTX too
)
X86 = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
    " -mprefer-vector-width=512",
}
PATHS = {"plain": "", **(X86 if platform.machine() in ("x86_64", "AMD64") else {})}
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# Multiply-adds where the sources say so, on every compiler.
NVCC = ["-std=c++20", "-O3", "-DNDEBUG", "-fmad=false", "--compress-mode=size", "-cudart=static"]
NVCC += ["-Xcompiler=-fPIC,-fvisibility=hidden"]
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


def torch_has_cuda(torch):
    return re.search(r"^cuda\b.* = '", (torch / "version.py").read_text(), re.MULTILINE) is not None


def missing():
    """Why no library can be built here, or None."""
    if compiler() is None:
        return "there is no C++ compiler"
    if torch_folder() is None:
        return "torch's headers (2.10 or later) were not found in the target environment"
    return None


def missing_cpu():
    return "FUSED_MI_BUILD_CPU=0" if os.environ.get("FUSED_MI_BUILD_CPU") == "0" else missing()


def missing_cuda():
    wanted = os.environ.get("FUSED_MI_BUILD_CUDA")
    if wanted == "0":
        return "FUSED_MI_BUILD_CUDA=0"
    if shutil.which("nvcc") is None:
        return "there is no nvcc"
    if reason := missing():
        return reason
    if wanted != "1" and not torch_has_cuda(torch_folder()):
        return "this torch has no CUDA"
    return None


class Library(NamedTuple):
    """Commands of the objects, each with its source, and what links them."""

    file: str
    objects: dict
    link: list
    variable: str  # of the environment; 1: its absence is an error
    consequence: str


def cpu_library(folder):
    kernels = [CPU / f"{name}.cpp" for name in KERNELS]
    objects = {folder / f"{name}.o": cxx(CPU / f"{name}.cpp", *headers()) for name in OPERATORS}
    for path, flags in PATHS.items():
        of_path = [f"-DFUSED_MI_PATH={path}", *flags.split()]
        objects |= {folder / f"{k.stem}.{path}.o": cxx(k, *of_path) for k in kernels}
    consequence = "no CPU library, plain torch serves CPUs"
    return Library("libfused_mi_cpu.so", objects, [compiler()], "FUSED_MI_BUILD_CPU", consequence)


def cuda_library(folder):
    archs = (os.environ.get("FUSED_MI_CUDA_ARCHS") or CUDA_ARCHS).split()
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    codes += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    objects = {
        folder / f"{name}.o": cxx(CUDA / f"{name}.cpp", *headers()) for name in CUDA_OPERATORS
    }
    for source in (CUDA / f"{name}.cu" for name in CUDA_KERNELS):
        objects[folder / f"{source.stem}.cu.o"] = (source, ["nvcc", *NVCC, *codes])
    link = ["nvcc", "-cudart=static"]
    consequence = "no CUDA library"
    return Library("libfused_mi_cuda.so", objects, link, "FUSED_MI_BUILD_CUDA", consequence)


def emulated_library(folder):
    """The kernels of CUDA for the host."""
    flags = ["-DFUSED_MI_EMULATED", "-Wno-unknown-pragmas", "-O1", "-g0"]
    sources = [CUDA / f"{name}.cpp" for name in CUDA_OPERATORS]
    sources.append(Path("csrc", "emulator", "model.cpp"))
    objects = {folder / f"{s.stem}.o": cxx(s, *headers(), *flags) for s in sources}
    for source in (CUDA / f"{name}.cu" for name in CUDA_KERNELS):
        objects[folder / f"{source.stem}.cu.o"] = cxx(source, *flags, "-x", "c++")
    variable, consequence = "FUSED_MI_BUILD_EMULATED", "no emulated library"
    return Library("libfused_mi_emulated.so", objects, [compiler()], variable, consequence)


LIBRARIES = {
    "cpu.library": cpu_library,
    "cuda.library": cuda_library,
    "cuda.emulated": emulated_library,
}


def headers():
    return ["-isystem", str(torch_folder() / "include"), *DEFINES]


def cxx(source, *flags):
    # Messages and binaries name files from these folders on, not where the build had them.
    folders = (Path.cwd(), torch_folder() / "include")
    roots = [f"-fmacro-prefix-map={folder}/=" for folder in folders]
    return source, [compiler(), *FLAGS, *roots, *flags]


class BuildLibrary(build_ext):
    def get_ext_filename(self, fullname):
        folder, library = fullname.removeprefix("fused_mi.").split(".")
        names = {"cpu": "libfused_mi_cpu.so", "cuda": "libfused_mi_cuda.so"}
        file = "libfused_mi_emulated.so" if library == "emulated" else names[folder]
        return str(Path("fused_mi", folder, file))

    def build_extension(self, ext):
        output = Path(self.build_lib, self.get_ext_filename(ext.name)).absolute()
        name = ext.name.removeprefix("fused_mi.")
        # An editable build has another temporary folder each time: what ninja made is kept instead.
        temp = Path("build", f"temp.{self.plat_name}-{sys.implementation.cache_tag}")
        temp = temp if self.editable_mode else Path(self.build_temp)
        folder = Path(temp, *([] if name == "cpu.library" else [name])).absolute()
        library = LIBRARIES[name](folder)
        try:
            build_library(library, folder, output)
        except subprocess.CalledProcessError as error:
            if os.environ.get(library.variable) == "1":
                raise
            output.unlink(missing_ok=True)
            print(f"fused_mi: {library.consequence}: {error}", file=sys.stderr)


def build_library(library, folder, output):
    """Compile and link, by ninja where there is one: only what changed."""
    folder.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    compile_all = {
        o: [*command, "-MMD", "-MF", f"{o}.d", "-c", str(source.absolute()), "-o", str(o)]
        for o, (source, command) in library.objects.items()
    }
    link = [*library.link, "-shared", "-o", str(output), *map(str, compile_all)]
    link += [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"]
    if shutil.which("ninja"):
        lines = ["rule run", " command = $command", " depfile = $depfile", " deps = gcc"]
        lines += ["rule link", " command = $command"]
        for o, command in compile_all.items():
            lines += [f"build {quoted(o)}: run {quoted(library.objects[o][0].absolute())}"]
            lines += [f" depfile = {o}.d", f" command = {shell(command)}"]
        lines += [f"build {quoted(output)}: link {' '.join(map(quoted, compile_all))}"]
        lines += [f" command = {shell(link)}", ""]
        (folder / "build.ninja").write_text("\n".join(lines))
        subprocess.run(["ninja", "-C", str(folder)], check=True)
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


def extensions():
    """Those that can be built here; says which cannot."""
    found = []
    for name, reason in (("cpu", missing_cpu()), ("cuda", missing_cuda())):
        variable = f"FUSED_MI_BUILD_{name.upper()}"
        if reason and os.environ.get(variable) == "1":
            raise SystemExit(f"fused_mi: {variable}=1, but {reason}")
        if reason and name == "cpu":  # nobody misses the other
            print(f"fused_mi: no CPU library, plain torch serves CPUs: {reason}", file=sys.stderr)
        if not reason:
            found.append(f"{name}.library")
    if os.environ.get("FUSED_MI_BUILD_EMULATED") == "1" and not missing():
        found.append("cuda.emulated")
    source = [str(CPU / "operators.cpp")]
    return [Extension(f"fused_mi.{name}", source, optional=True) for name in found]


setup(
    # The Triton project has a package called triton_kernels: ours must not be importable as that.
    package_dir={"": "python", "fused_mi.triton_kernels": "triton_kernels"},
    packages=[*find_packages("python"), "fused_mi.triton_kernels"],
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
