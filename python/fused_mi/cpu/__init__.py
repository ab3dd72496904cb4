"""The kernels for CPUs: compiled, and optional. Modules and functions as in the reference."""
