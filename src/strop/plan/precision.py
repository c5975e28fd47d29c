"""Whether a CPU multiplies bfloat16 so much faster than float32 that a run is computed in it: measured, not looked up.

    the model's largest products ──both dtypes, both directions──▶ Speeds ──taken──▶ "bfloat16" or "float32"

What a processor says of itself does not tell: with AVX2 torch multiplies bfloat16 forward at a fifth of float32's rate
and backward at a twentieth, with AMX at six times it. So the model's own products are made, from few rows on, and as
soon as bfloat16 is far behind nothing more of it is run.

A GPU's dtype is `strop.plan.gpu.default_dtype`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from strop.kernels import blas, library
from strop.plan.clocks import wall_clock
from strop.run.figures import significant

if TYPE_CHECKING:
    from strop.plan.plan import Plan

# Products are three quarters of a step in float32 (SmolLM2-135M, 2 cores of a Xeon with AMX): where bfloat16 makes them
# 1.5 times as fast, a step takes a quarter less. Less than that is not worth eight bits of every activation.
WORTH = 1.5
# Bfloat16 that is so many times slower at any count of rows is given up at once.
_HOPELESS = 3.0
# Products that are compared: gate and up, and down, of a common decoder.
_PRODUCTS = 2
# Of larger weights a block tells as much. Few rows come first: where bfloat16 runs at 0.2 GFLOP/s, as torch's did with
# what AVX2 has (166 times as long as float32), four of them are a third of a second.
_BLOCK = 2048
_ROWS = (4, 64, 256, 1024)
# Seconds of a float32 product that is large enough to be told from what a call costs.
_ENOUGH = 4e-3
_SECONDS = 4e-3


@dataclass(frozen=True, slots=True)
class Speeds:
    """Operations per second of the same products in both dtypes, both directions together."""

    float32: float
    bfloat16: float

    @property
    def times(self) -> float:
        """How many times as fast bfloat16 is."""
        return self.bfloat16 / self.float32

    @property
    def pays(self) -> bool:
        """Whether a run is computed in bfloat16 here."""
        return self.times >= WORTH

    def in_words(self) -> str:
        """bfloat16's products beside float32's: "its products are 6.1 times as fast here as float32's"."""
        if self.times < 1:
            return f"its products take {significant(1 / self.times, 2)} times as long here as float32's"
        only = "" if self.pays else "no more than "
        return f"its products are {only}{significant(self.times, 2)} times as fast here as float32's"


def compare(weights: Sequence[tuple[int, int]]) -> Speeds | None:
    """Times the largest products of frozen weights [outputs, inputs] in both dtypes, for a quarter of a second.

    Args:
        weights: (inputs, outputs) of each.

    Returns:
        None without the native library: everything beside products is slow in bfloat16 without it, so that it is not
        compared.
    """
    if library.native() is None:
        return None
    blocks = {(min(inputs, _BLOCK), min(outputs, _BLOCK)) for inputs, outputs in weights}
    largest = sorted(blocks, key=lambda one: (one[0] * one[1], one), reverse=True)[:_PRODUCTS]
    seconds = {torch.float32: 0.0, torch.bfloat16: 0.0}
    operations = 0.0
    for inputs, outputs in largest:
        # Backward first: that is the slow one where bfloat16 is not meant to be multiplied.
        for forward in (False, True):
            rows, exact, low = _both(inputs, outputs, forward)
            operations += 2.0 * rows * inputs * outputs
            seconds[torch.float32] += exact
            seconds[torch.bfloat16] += low
            if low > _HOPELESS * exact:
                return Speeds(operations / seconds[torch.float32], operations / seconds[torch.bfloat16])
    return Speeds(operations / seconds[torch.float32], operations / seconds[torch.bfloat16])


def taken(speeds: Speeds | None) -> str:
    """The dtype that a CPU computes in where nobody names one.

    Only where the products are Strop's own: what torch calls keeps code for every shape that it meets, a gigabyte in a
    run of many packs, and no budget would hold.
    """
    own = blas.libraries(torch.bfloat16)[0] != "torch"
    return "bfloat16" if own and speeds is not None and speeds.pays else "float32"


def in_words(speeds: Speeds | None, dtype: str) -> str:
    """What a CPU's plan computes in and why, with the way to have the other; empty where nothing was compared."""
    if speeds is None:
        return ""
    if dtype == "float32":
        return f"float32; of bfloat16 {speeds.in_words()}"
    if speeds.pays:
        return f"bfloat16: {speeds.in_words()}; --plan.dtype float32 computes in full precision"
    return f"bfloat16, though {speeds.in_words()}; --plan.dtype float32 has the other"


def slow(speeds: Speeds | None, plan: Plan) -> str:
    """Why a plan's bfloat16 is slow on this CPU, a clause; empty where it is not, or something else is computed."""
    if plan.on_gpu or plan.dtype != "bfloat16":
        return ""
    if library.native() is None:
        return f"without the native library ({library.reason()}) torch computes everything in it"
    return speeds.in_words() if speeds is not None and speeds.times < 1 else ""


def _both(inputs: int, outputs: int, forward: bool) -> tuple[int, float, float]:
    """(rows, seconds in float32, seconds in bfloat16) of a product, at as many rows as say something."""
    for rows in _ROWS:
        exact = min(_seconds(rows, inputs, outputs, torch.float32, name, forward) for name in blas.libraries())
        low = _seconds(rows, inputs, outputs, torch.bfloat16, blas.libraries(torch.bfloat16)[0], forward)
        if low > _HOPELESS * max(exact, _ENOUGH / 8) or (rows > _ROWS[0] and exact >= _ENOUGH):
            break
    return rows, exact, low


def _seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype, name: str, forward: bool) -> float:
    width, columns = (inputs, outputs) if forward else (outputs, inputs)
    a_MK, weight_OI = torch.full((rows, width), 0.5, dtype=dtype), torch.full((outputs, inputs), 0.5, dtype=dtype)
    out_MN = torch.zeros(rows, columns, dtype=dtype)
    with blas.using(name):
        # Whatever is compiled at the first call is not of interest.
        blas.product(a_MK, weight_OI, out_MN, transpose_b=forward)
        return wall_clock(lambda: blas.product(a_MK, weight_OI, out_MN, transpose_b=forward), _SECONDS)
