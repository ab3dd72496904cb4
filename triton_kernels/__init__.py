"""GPU kernels in Triton, installed as `fused_mi.triton_kernels`."""

if __name__ != "fused_mi.triton_kernels":
    raise ImportError(
        "import fused_mi.triton_kernels instead: this folder is no package of its own"
    )
