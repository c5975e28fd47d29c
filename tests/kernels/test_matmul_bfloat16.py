"""The matrix product in bfloat16: Strop's own by AMX and torch's, against float64."""

import pytest
import torch

from strop.kernels import blas, library

needs_amx = pytest.mark.skipif("amx" not in blas.libraries(torch.bfloat16), reason="this CPU or build has no AMX")
each_library = pytest.mark.parametrize("name", ["torch", pytest.param("amx", marks=needs_amx)])
each_layout = pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])

# (m, n, k): odd ones, halves of a block of 32, k in one piece and in several, rows that are multiples of 2 KiB apart.
SHAPES = [
    *[(1, 1, 1), (3, 17, 5), (16, 32, 32), (17, 33, 31), (40, 24, 576), (300, 576, 24), (129, 300, 640)],
    *[(8, 576, 1900), (70, 100, 1300), (257, 520, 700), (200, 96, 1024), (33, 70, 2048)],
]
# A unit in the last place of bfloat16 is 2^-8 of a number at most, and rounding takes half of it.
ROUNDED = 2.0**-8


@pytest.fixture
def restored():
    threads = library.threads()
    yield
    library.set_threads(threads)


def matrix(rows: int, columns: int, seed: int, spare: int = 0) -> torch.Tensor:
    """A view of a wider matrix, or a whole one."""
    values = torch.randn(rows, columns + spare, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return values[:, spare // 2 : spare // 2 + columns]


def operands(m: int, n: int, k: int, transposed: tuple[bool, bool], spare: int = 0):
    """a, b, and their product in float64."""
    a = matrix(*((k, m) if transposed[0] else (m, k)), 0, spare)
    b = matrix(*((n, k) if transposed[1] else (k, n)), 1, spare)
    return a, b, (a.t() if transposed[0] else a).double() @ (b.t() if transposed[1] else b).double()


@each_library
@each_layout
@pytest.mark.parametrize("spare", [0, 6])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_product_is_rounded_once(name, spare, transposed, m, n, k):
    a, b, exact = operands(m, n, k, transposed, spare)
    flags = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    wide = torch.full((m, n + spare), 7.0).bfloat16()
    out = wide[:, spare // 2 : spare // 2 + n]
    near = {"rtol": ROUNDED, "atol": 2e-5 * k**0.5}
    with blas.using(name):
        out.fill_(float("nan"))
        assert blas.product(a, b, out, **flags).data_ptr() == out.data_ptr()
        torch.testing.assert_close(out.double(), exact, **near)
        before = out.double()
        blas.product(a, b, out, **flags, alpha=0.5, add=True)
        # Torch rounds the product before it adds on some CPUs.
        torch.testing.assert_close(out.double(), before + 0.5 * exact, rtol=2 * ROUNDED, atol=ROUNDED * 2 * k**0.5)
    assert (wide[:, : spare // 2] == 7).all()
    assert (wide[:, spare // 2 + n :] == 7).all()


@needs_amx
@each_layout
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_sums_are_not_rounded_on_their_way_to_float32(transposed, m, n, k):
    a, b, exact = operands(m, n, k, transposed)
    out = torch.full((m, n), float("nan"))
    with blas.using("amx"):
        blas.product(a, b, out, transpose_a=transposed[0], transpose_b=transposed[1])
        assert (out - exact).abs().max() < 3e-6 * k**0.5 * 4
        blas.product(a, b, out, transpose_a=transposed[0], transpose_b=transposed[1], alpha=-2.0, add=True)
        assert (out + exact).abs().max() < 3e-6 * k**0.5 * 12


@needs_amx
def test_what_is_added_to_is_not_rounded_before():
    """1 + 2^-9 rounds to 1, twice that does not: the sum is made first."""
    a, b = torch.full((40, 1), 2.0**-9).bfloat16(), torch.ones(1, 40).bfloat16()
    out = torch.full((40, 40), 2.0**-9 * 3).bfloat16()
    with blas.using("amx"):
        blas.product(a, b, out, add=True)
    assert (out == 2.0**-7).all()


@each_library
def test_float32_takes_what_16_bits_make(name):
    a, b, exact = operands(20, 30, 40, (False, True))
    out = torch.ones(20, 30)
    with blas.using(name):
        blas.product(a, b, out, transpose_b=True, alpha=2.0)
        torch.testing.assert_close(out.double(), 2 * exact, rtol=ROUNDED, atol=1e-4)
        blas.product(a, b, out, transpose_b=True, alpha=-1.0, add=True)
        torch.testing.assert_close(out.double(), exact, rtol=3 * ROUNDED, atol=ROUNDED)


@each_library
@pytest.mark.parametrize("empty", ["m", "n", "k"])
def test_nothing_times_something(name, empty):
    size = {"m": 4, "n": 5, "k": 6} | {empty: 0}
    a, b = torch.ones(size["m"], size["k"]).bfloat16(), torch.ones(size["k"], size["n"]).bfloat16()
    out = torch.ones(size["m"], size["n"]).bfloat16()
    with blas.using(name):
        blas.product(a, b, out, add=True)
        assert (out == (1 if empty == "k" else 7)).all()
        blas.product(a, b, out)
    assert (out == (0 if empty == "k" else 6)).all()


@needs_amx
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "n", "k"), [(1100, 600, 200), (80, 3000, 1290), (700, 576, 2048)])
def test_the_number_of_threads_changes_no_bit(m, n, k, out_dtype, restored):
    a, b, _ = operands(m, n, k, (False, True))
    results = []
    with blas.using("amx"):
        for threads in (1, 2, 3, 4):
            blas.set_threads(threads)
            results.append(blas.product(a, b, torch.empty(m, n, dtype=out_dtype), transpose_b=True))
    assert all(torch.equal(result, results[0]) for result in results)


@needs_amx
def test_rows_of_a_row_do_not_depend_on_those_beside_it():
    """A token's numbers are the same in every pack: what plans may differ in."""
    a, b, _ = operands(333, 200, 800, (False, True))
    with blas.using("amx"):
        whole = blas.product(a, b, torch.empty(333, 200).bfloat16(), transpose_b=True)
        for rows in (slice(0, 1), slice(100, 117), slice(300, 333)):
            part = blas.product(a[rows], b, torch.empty(rows.stop - rows.start, 200).bfloat16(), transpose_b=True)
            assert torch.equal(part, whole[rows])


@needs_amx
def test_numbers_that_are_none_stay_so():
    a, b, _ = operands(40, 50, 64, (False, True))
    a[3, 5] = float("nan")
    a[7, 9] = float("inf")
    with blas.using("amx"):
        out = blas.product(a, b, torch.empty(40, 50).bfloat16(), transpose_b=True)
    assert out[3].isnan().all()
    assert out[7].isinf().all()
    assert out[[0, 1, 2, 4, 5, 6, 8]].isfinite().all()
