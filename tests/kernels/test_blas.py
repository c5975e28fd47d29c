"""The matrix product: OpenBLAS through the pool and torch's, against float64."""

import sys

import pytest
import torch

from strop.errors import UsageError
from strop.kernels import blas, library

needs_openblas = pytest.mark.skipif("openblas" not in blas.libraries(), reason=blas.describe())
each_library = pytest.mark.parametrize("name", ["torch", pytest.param("openblas", marks=needs_openblas)])

# (m, n, k): awkward, and large enough to be cut by rows, by columns and by both.
shapes = [
    *[(1, 1, 1), (1, 17, 3), (3, 1, 17), (17, 3, 1), (1, 1000, 64), (1000, 1, 17), (17, 1000, 1000)],
    *[(1000, 17, 300), (80, 2311, 67), (1100, 300, 40), (777, 1003, 129)],
]


@pytest.fixture
def restored():
    threads = library.threads()
    yield
    library.set_threads(threads)


def matrix(rows: int, columns: int, seed: int, spare: int) -> torch.Tensor:
    """A view of a wider matrix, or a whole one."""
    values = torch.randn(rows, columns + spare, generator=torch.Generator().manual_seed(seed))
    return values[:, spare // 2 : spare // 2 + columns]


@each_library
@pytest.mark.parametrize("spare", [0, 7])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("m", "n", "k"), shapes)
def test_a_product_is_what_it_is_in_float64(name, spare, transposed, m, n, k):
    transpose_a, transpose_b = transposed
    a = matrix(*((k, m) if transpose_a else (m, k)), 0, spare)
    b = matrix(*((n, k) if transpose_b else (k, n)), 1, spare)
    exact = (a.t() if transpose_a else a).double() @ (b.t() if transpose_b else b).double()
    wide = torch.full((m, n + spare), 7.0)
    out = wide[:, spare // 2 : spare // 2 + n]
    with blas.using(name):
        out.fill_(float("nan"))
        result = blas.product(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b)
        assert result.data_ptr() == out.data_ptr()
        assert (out - exact).abs().max() < 3e-6 * k**0.5 * 4
        before = out.clone()
        blas.product(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, alpha=0.5, add=True)
        assert (out - (before + 0.5 * exact)).abs().max() < 3e-6 * k**0.5 * 4
        blas.product(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, alpha=-2.0)
        assert (out + 2 * exact).abs().max() < 3e-6 * k**0.5 * 8
    assert (wide[:, : spare // 2] == 7).all()
    assert (wide[:, spare // 2 + n :] == 7).all()


@each_library
@pytest.mark.parametrize("empty", ["m", "n", "k"])
def test_nothing_times_something(name, empty):
    size = {"m": 4, "n": 5, "k": 6} | {empty: 0}
    a, b = torch.ones(size["m"], size["k"]), torch.ones(size["k"], size["n"])
    out = torch.ones(size["m"], size["n"])
    with blas.using(name):
        blas.product(a, b, out, add=True)
        assert (out == (1 if empty == "k" else 7)).all()
        blas.product(a, b, out)
    assert (out == (0 if empty == "k" else 6)).all()


@needs_openblas
@pytest.mark.parametrize(("m", "n", "k"), [(1100, 600, 200), (80, 3000, 129), (48, 576, 700)])
def test_the_number_of_threads_changes_no_bit(m, n, k, restored):
    a, b = matrix(m, k, 0, 3), matrix(n, k, 1, 0)
    results = []
    with blas.using("openblas"):
        for threads in (1, 2, 3, 4):
            blas.set_threads(threads)
            results.append(blas.product(a, b, torch.empty(m, n), transpose_b=True))
    assert all(torch.equal(result, results[0]) for result in results)


@each_library
def test_other_types_and_layouts_are_computed_too(name):
    with blas.using(name):
        double = torch.randn(5, 6, dtype=torch.float64)
        torch.testing.assert_close(
            blas.product(double, double, torch.empty(5, 5).double(), transpose_b=True), double @ double.t()
        )
        a, b = torch.randn(6, 5).t(), torch.randn(1, 6).expand(6, 6)  # columns that lie apart, rows that overlap
        torch.testing.assert_close(blas.product(a, b, torch.empty(5, 6)), a @ b)
        half = torch.randn(5, 6).bfloat16()
        out = blas.product(half, half, torch.empty(5, 5).bfloat16(), transpose_b=True)
        torch.testing.assert_close(out, half @ half.t())


def test_without_openblas_torch_computes(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy_openblas32", None)
    # A run before this test may have chosen a library for the whole process.
    monkeypatch.setattr(blas._choice, "name", None)
    blas._openblas.cache_clear()
    try:
        assert blas.libraries() == ("torch",)
        assert blas.describe().startswith("torch (")
        a = torch.randn(300, 40)
        torch.testing.assert_close(blas.product(a, a, torch.empty(300, 300), transpose_b=True), a @ a.t())
        with pytest.raises(UsageError, match="openblas"):
            blas.use("openblas")
    finally:
        blas._openblas.cache_clear()


def test_a_choice_ends_with_its_block():
    before = blas.describe()
    with blas.using("torch"):
        assert blas.describe().startswith("torch")
        assert not blas.uses_openblas()
    assert blas.describe() == before
    with pytest.raises(UsageError, match="mkl"):
        blas.use("mkl")


class OnCard(torch.Tensor):
    """A tensor that says that it lies on a card."""

    is_cuda = True


@pytest.fixture
def multiplied(monkeypatch):
    """The calls of `torch.mm` that ask for another dtype, made as a card makes them."""
    calls, mm = [], torch.mm

    def as_on_a_card(a, b, *, out_dtype=None, **rest):
        if out_dtype is None:
            return mm(a, b, **rest)
        calls.append(out_dtype)
        return mm(a.float(), b.float(), **rest)

    monkeypatch.setattr(torch, "mm", as_on_a_card)
    blas._keeps_float32.cache_clear()
    yield calls
    blas._keeps_float32.cache_clear()


def test_a_card_does_not_round_a_product_that_is_wanted_in_float32(multiplied):
    a, b = (matrix(40, 24, seed, 0).bfloat16() for seed in (1, 2))
    exact = a.double().T @ b.double()
    on_card = blas.product_in_float32(a.as_subclass(OnCard).t(), b.as_subclass(OnCard))
    rounded = blas.product_in_float32(a.t(), b)
    assert on_card.dtype is rounded.dtype is torch.float32
    assert (on_card - exact).norm() < 1e-5 * exact.norm() < (rounded - exact).norm()
    assert multiplied == [torch.float32] * 3, "twice to try, once for the product"
    given = torch.empty(24, 24)
    blas.product_in_float32(a.as_subclass(OnCard).t(), b.as_subclass(OnCard), given)
    assert torch.equal(given, on_card)
    assert len(multiplied) == 4
    wider = torch.empty(24, 30)
    blas.product_in_float32(a.as_subclass(OnCard).t(), b.as_subclass(OnCard), wider[:, :24])
    assert torch.equal(wider[:, :24], rounded), "columns of wider memory are written by a copy"


@pytest.mark.parametrize("fault", ["refuses", "rounds"])
def test_where_torch_cannot_keep_float32_it_is_not_asked_to(fault, multiplied, monkeypatch):
    def faulty(a, b, *, out_dtype, out=None):
        if fault == "refuses":
            raise NotImplementedError("'aten::mm.dtype' with arguments from the 'CUDA' backend")
        made = (a @ b).to(out_dtype)
        return made if out is None else out.copy_(made)

    monkeypatch.setattr(torch, "mm", faulty)
    a, b = (matrix(40, 24, seed, 0).bfloat16().as_subclass(OnCard) for seed in (1, 2))
    assert torch.equal(blas.product_in_float32(a.t(), b), (a.t() @ b).float())
