"""Folders that are packages under other names; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # The Triton project has a package called triton_kernels: ours must not be importable as that.
    package_dir={"": "python", "fused_mi.triton_kernels": "triton_kernels"},
    packages=[*find_packages("python"), "fused_mi.triton_kernels"],
)
