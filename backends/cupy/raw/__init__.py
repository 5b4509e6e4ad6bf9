"""Raw CUDA kernels for CuPy: the CUDA text, and what compiles and launches it."""
