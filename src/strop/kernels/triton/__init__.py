"""The operations of a step as Triton kernels, one a file, for CUDA devices.

Nothing here decides: `strop.kernels.select` does, at every call, and the operations in `strop.kernels` hand over their
tensors. A module of this folder imports Triton and is therefore imported only by an operation that is about to use it;
`found` says whether that works here.

Every kernel reduces in one fixed order and none adds floats atomically: the same launch gives the same bits. Sums and
products are float32 whatever the tensors are; results are rounded once, or as the reference in torch rounds them. What
goes through rows does not contract products and sums (``enable_fp_fusion``), as torch does not.
Where there is no GPU, Triton's interpreter runs the kernels (``TRITON_INTERPRET=1`` before Triton is imported): slowly,
for tests.

Arguments of kernels are pointers, the distance between rows in numbers (``x_row`` for x), and sizes; names in capitals
are known when a kernel is compiled. Axes of tiles are suffixes as everywhere in `strop.kernels`.
"""
