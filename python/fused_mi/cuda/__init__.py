"""The kernels as compiled CUDA C++: optional, and used when forced. Modules as in the reference."""
