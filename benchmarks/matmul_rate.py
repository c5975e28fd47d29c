"""The arithmetic limit of a training step on this CPU: how fast its matrix products alone could be.

    python benchmarks/matmul_rate.py [MODEL_FOLDER]

A training step with a frozen base multiplies every token once with each weight matrix on the way forward (x Wᵀ) and
once on the way back (g W); the head does so for learned tokens alone. In floating point operations a token of a sample:

    FLOP = 4 · N_linear + 4 · V · D · s         N_linear weights of all projections, s learned share of the tokens
    limit = rate / FLOP                         tokens a second

    rate = Σ flops / Σ (flops / rate of the product)       over the model's own products, forward and backward

The rate of a product is that of the fastest library at hand for its shape (torch's own, or the OpenBLAS of
`scipy-openblas32`): float32, best of several repetitions, as many threads as there are cores, the second operand as the
weights lie in memory. 2,048 rows stand for a pack of tokens, 256 for learned tokens at the head. Left out, so that the
limit is out of reach: attention's products, everything element-wise, dequantisation, the adapter. A step may leave out
products that no gradient needs (below the first adapter, in the last layer): with thirty layers that is 2 % of them.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TOKENS, LEARNED, REPETITIONS = 2048, 256, 9

Multiply = Callable[[Tensor, Tensor, bool, Tensor], None]


@dataclass(frozen=True)
class Product:
    """One of a step's matrix products: rows × inner by inner × columns.

    Attributes:
        share: operations of this product a token, as a part of what `flops_a_token` gives, not yet normalised.
        transposed: whether the second operand is stored columns × inner (forward) or inner × columns (backward).
    """

    name: str
    rows: int
    inner: int
    columns: int
    transposed: bool
    share: float


def products(config: dict[str, int], learned_share: float) -> list[Product]:
    """The products of a decoder, with their operations a token.

    Args:
        config: the model's config.json.
        learned_share: learned tokens a token.
    """
    hidden, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_size, config.get("num_key_value_heads", heads) * head_size
    shapes = [
        ("q·k·v", TOKENS, hidden, queries + 2 * keys, layers),
        ("o", TOKENS, queries, hidden, layers),
        ("gate·up", TOKENS, hidden, 2 * wide, layers),
        ("down", TOKENS, wide, hidden, layers),
        ("head", LEARNED, hidden, config["vocab_size"], learned_share),
    ]
    return [
        product
        for name, rows, inside, outside, times in shapes
        for product in (
            Product(f"{name} forward", rows, inside, outside, True, 2 * inside * outside * times),
            Product(f"{name} backward", rows, outside, inside, False, 2 * inside * outside * times),
        )
    ]


def flops_a_token(listed: list[Product]) -> float:
    """4 · N_linear + 4 · V · D · learned share."""
    return sum(product.share for product in listed)


def overall_rate(listed: list[Product], rates: dict[str, float]) -> float:
    """The rate at which all products run one after the other, each at its own."""
    return flops_a_token(listed) / sum(product.share / rates[product.name] for product in listed)


def measure(listed: list[Product], threads: int) -> dict[str, dict[str, float]]:
    """Operations a second of every product, by library."""
    torch.set_num_threads(threads)
    found = {}
    for library, multiply in _libraries(threads).items():
        found[library] = {product.name: _rate(product, multiply) for product in listed}
    return found


def best_rate(listed: list[Product], found: dict[str, dict[str, float]]) -> float:
    """The overall rate with the fastest library for every product."""
    return overall_rate(listed, {p.name: max(rates[p.name] for rates in found.values()) for p in listed})


def _rate(product: Product, multiply: Multiply) -> float:
    a = torch.randn(product.rows, product.inner)
    stored = (product.columns, product.inner) if product.transposed else (product.inner, product.columns)
    b, out = torch.randn(stored), torch.empty(product.rows, product.columns)
    multiply(a, b, product.transposed, out)
    best = float("inf")
    for _ in range(REPETITIONS):
        begun = time.perf_counter()
        multiply(a, b, product.transposed, out)
        best = min(best, time.perf_counter() - begun)
    return 2 * product.rows * product.inner * product.columns / best


def _libraries(threads: int) -> dict[str, Multiply]:
    libraries: dict[str, Multiply] = {"torch": _torch}
    if importlib.util.find_spec("scipy_openblas32"):
        libraries["openblas"] = _openblas(threads)
    return libraries


def _torch(a: Tensor, b: Tensor, transposed: bool, out: Tensor) -> None:
    torch.mm(a, b.T if transposed else b, out=out)


def _openblas(threads: int) -> Multiply:
    import scipy_openblas32

    folder = Path(scipy_openblas32.get_lib_dir())
    library = ctypes.CDLL(str(next(path for path in folder.iterdir() if path.suffix in (".so", ".dylib", ".dll"))))
    library.scipy_openblas_set_num_threads(threads)
    whole, real, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    sgemm = library.scipy_cblas_sgemm
    sgemm.argtypes = [whole] * 6 + [real, pointer, whole, pointer, whole, real, pointer, whole]
    row_major, plain, transpose = 101, 111, 112  # cblas.h

    def multiply(a: Tensor, b: Tensor, transposed: bool, out: Tensor) -> None:
        order = transpose if transposed else plain
        sizes = (a.shape[0], out.shape[1], a.shape[1])
        first, second = (a.data_ptr(), a.stride(0)), (b.data_ptr(), b.stride(0))
        sgemm(row_major, plain, order, *sizes, 1.0, *first, *second, 0.0, out.data_ptr(), out.stride(0))

    return multiply


def main() -> None:
    """Prints rates and limit as JSON."""
    import psutil

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="model folder (default: the starter model)")
    parser.add_argument("--learned-share", type=float, default=0.6)
    arguments = parser.parse_args()
    if arguments.model is None:
        from strop.model.starter import starter_folder

        arguments.model = starter_folder()
    config = json.loads((arguments.model / "config.json").read_text(encoding="utf-8"))
    listed = products(config, arguments.learned_share)
    found = measure(listed, psutil.cpu_count(logical=False) or 1)
    rate, flops = best_rate(listed, found), flops_a_token(listed)
    report = {
        "gflop_per_s": {name: {p: round(r / 1e9, 1) for p, r in rates.items()} for name, rates in found.items()},
        "overall_gflop_per_s": {name: round(overall_rate(listed, rates) / 1e9, 1) for name, rates in found.items()},
        "best_gflop_per_s": round(rate / 1e9, 1),
        "mflop_per_token": round(flops / 1e6, 1),
        "mflop_per_computed_token": sum(p.share for p in listed if not p.name.startswith("head")) / 1e6,
        "mflop_per_learned_token": sum(p.share for p in products(config, 1.0) if p.name.startswith("head")) / 1e6,
        "limit_tokens_per_s": round(rate / flops, 1),
    }
    json.dump(report, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
