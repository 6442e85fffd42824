"""A simulated H100: a stand-in for CUDA's runtime under torch's own CUDA build, on a machine without a GPU.

`device` builds it and runs a Python process with it. In that process `counting` counts launches, copies and
synchronisations, and nothing is computed; with `computing` each CUDA kernel is the CPU's over the same memory, Triton's
run in its interpreter, and CUDA graphs are recorded and replayed; `kernels` tells what each compiled kernel moves.
Inductor and ptxas generate and compile the real kernels.

What it cannot show: time, the rounding of cuDNN and cuBLAS, TF32, limits of memory, real asynchrony and races, NCCL,
cuSOLVER. What it gives is quoted as simulated.
"""
