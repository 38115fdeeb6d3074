"""CUDA kernels in Triton; imported where a GPU is, and by tests, which run them in Triton's interpreter."""
