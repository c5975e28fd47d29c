"""16-bit products in pieces of few sizes: the same product, and few shapes however many counts of rows there are."""

from __future__ import annotations

import pytest
import torch

from strop.kernels import blas, row_pieces

COUNTS = [1, 7, 9, 40, 64, 65, 256, 300, 511, 1000, 1900, 3000]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("rows", COUNTS)
@pytest.mark.parametrize(("add", "alpha", "transposed"), [(False, 1.0, True), (True, 1.0, False), (True, 0.5, True)])
def test_products_in_pieces_are_the_product(rows: int, add: bool, alpha: float, transposed: bool):
    a, b, out = numbers(rows, 48), numbers(80, 48) if transposed else numbers(48, 80), numbers(rows, 160)[:, 40:120]
    expected = alpha * (a.double() @ (b.T if transposed else b).double()) + (out.double() if add else 0)
    around = out.clone()
    found = blas.product(a, b, out, transpose_b=transposed, alpha=alpha, add=add)
    assert found is out
    assert out.shape == around.shape
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=0.05)


@pytest.mark.parametrize("rows", COUNTS)
def test_sums_over_rows_are_added_up_in_float32(rows: int):
    left, right = numbers(rows, 16), numbers(rows, 96)
    found = blas.inner(left, right)
    assert found.dtype is torch.float32
    expected = left.double().T @ right.double()
    assert torch.dist(found.double(), expected) <= 0.004 * expected.norm()


def test_all_counts_of_rows_are_few_shapes(monkeypatch: pytest.MonkeyPatch):
    shapes = set()
    made = row_pieces._product

    def spy(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, alpha: float, add: bool) -> None:
        shapes.add((a.shape, b.shape, out.shape))
        made(a, b, out, alpha, add)

    monkeypatch.setattr(row_pieces, "_product", spy)
    for rows in range(9, 9000, 37):
        blas.product(numbers(rows, 8), numbers(8, 8), numbers(rows, 8))
    assert {rows for (rows, _), _, _ in shapes} == {64, 256, *range(512, 4097, 512)}


@pytest.mark.parametrize(("most", "rows"), [(3, 0), (40, 64), (64, 64), (200, 256), (300, 512), (5000, 512)])
def test_no_padded_piece_is_larger_than_said(most: int, rows: int):
    assert row_pieces.padded(most) == rows
    sizes = [
        size
        for total in range(1, most + 1)
        for taken, size in row_pieces._pieces(total)
        if taken.stop - taken.start < size
    ]
    assert max(sizes, default=0) == rows
