"""Kernels for CPUs, compiled by numba: no compiler is needed at run time, and each is compiled once for a machine."""
