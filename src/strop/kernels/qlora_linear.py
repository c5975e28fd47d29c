"""The QLoRA linear: frozen NF4 projections with LoRA adapters, for several projections that share one input.

For one projection, with W the dequantised base [O, I], A [R, I], B [O, R], s = alpha / rank, m the dropout:

    y  = x Wᵀ + b + s · (m(x) Aᵀ) Bᵀ
    dx = dy W + mᵀ(s · (dy B) A)
    dA = s · (dy B)ᵀ m(x)         dB = s · dyᵀ (m(x) Aᵀ)

(Hu et al. 2021, arXiv:2106.09685, equation 3; QLoRA, arXiv:2305.14314, equation 5.) W gets no gradient. Forward saves
x alone, once for all projections of the group; backward makes W again from NF4 and m(x) Aᵀ again from x. W is written
into one buffer that all layers share (`WeightBuffer`), the projections of a group below one another, so that a group
is one product in each direction; a group of more weights than the buffer may hold is done in blocks of rows.

`project` and `project_backward` write into memory that they are given: the engine's way. `qlora_linear` is the same
mathematics as one differentiable function: the reference.

In 16 bits the adapters' part is made first and the base's is added to it inside the product, which sums in float32 and
rounds once. The other way round what is smaller than half a unit in the last place of x Wᵀ would be lost.

For few rows on a CUDA device, undoing NF4 inside the product may be faster than writing W first. `fuse_up_to` says for
how many, 0 at first: whoever has measured the card says more. bitsandbytes' own such product stops paying at 16 to 64
rows on Hopper and 256 on an RTX 4090. Only the forward pass has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from strop.kernels import nf4, select
from strop.kernels.blas import product, product_in_float32
from strop.kernels.dropout import add_dropped, dropout, dropout_into, keep_mask
from strop.kernels.frozen_group import BLOCK_WEIGHTS, FrozenGroup, WeightBuffer

__all__ = [
    "BLOCK_WEIGHTS",
    "AdapterMemory",
    "Dropout",
    "FrozenGroup",
    "Pair",
    "WeightBuffer",
    "fuse_up_to",
    "fused_rows",
    "project",
    "project_backward",
    "qlora_linear",
]


@dataclass(slots=True)
class _Fused:
    """Most rows for which NF4 is undone inside the product."""

    rows: int = 0


_fused = _Fused()


def fuse_up_to(rows: int) -> None:
    """Undoes NF4 inside the product for up to this many rows from now on, where Triton's kernels run; 0 for never."""
    _fused.rows = rows


def fused_rows() -> int:
    """For how many rows at most NF4 is undone inside the product."""
    return _fused.rows


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of the adapters' inputs: chance, the tokens' keys [T], and one salt a projection of the group."""

    probability: float
    key_T: Tensor
    salts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterMemory:
    """Memory that a group's adapters work in.

    Attributes:
        down: at least T · S numbers; S is the ranks of the group's adapters side by side.
        down_gradient: as many.
        dropped: at least T · I numbers; None without dropout.
    """

    down: Tensor
    down_gradient: Tensor
    dropped: Tensor | None


Pair = tuple[Tensor, Tensor]


def project(
    x_TI: Tensor,
    frozen: FrozenGroup,
    adapters: Sequence[Pair | None],
    scale: float,
    drop: Dropout | None,
    memory: AdapterMemory,
    out_TO: Tensor,
    *,
    add: bool = False,
) -> Tensor:
    """Applies a group of projections to their common input, into given memory.

    Args:
        x_TI: input [T, I].
        frozen: the frozen base of the group.
        adapters: (A [R, I], B [O_p, R]) a projection, or None where it has no adapter.
        scale: alpha / rank.
        drop: dropout on the adapters' inputs, or None.
        memory: what the adapters work in.
        out_TO: all outputs side by side [T, sum of O_p].
        add: add to what ``out_TO`` holds, as the residual stream asks for.

    Returns:
        ``out_TO``.
    """
    if _is_fused(x_TI, frozen, out_TO):
        _project_fused(x_TI, frozen, adapters, _down(x_TI, adapters, scale, drop, memory), out_TO, add=add)
        return out_TO
    small_first = _rounds(out_TO, adapters)
    if small_first:
        _add_adapters(x_TI, frozen, adapters, scale, drop, memory, out_TO, over=not add)
    for rows, weight_BI in frozen.blocks(x_TI.dtype):
        product(x_TI, weight_BI, out_TO[:, rows], transpose_b=True, add=add or small_first)
    if frozen.bias_O is not None:
        out_TO += frozen.bias_O.to(out_TO.dtype)
    if not small_first:
        _add_adapters(x_TI, frozen, adapters, scale, drop, memory, out_TO)
    return out_TO


def _rounds(out: Tensor, adapters: Sequence[Pair | None]) -> bool:
    """Whether adding in steps would round the adapters' part away (docs/decisions/0022-small-numbers-first.md)."""
    return out.itemsize < 4 and any(pair is not None for pair in adapters)


def _add_adapters(
    x_TI: Tensor,
    frozen: FrozenGroup,
    adapters: Sequence[Pair | None],
    scale: float,
    drop: Dropout | None,
    memory: AdapterMemory,
    out_TO: Tensor,
    *,
    over: bool = False,
) -> None:
    """Adds the adapters' part to the outputs, or writes it over them."""
    down_TS = _down(x_TI, adapters, scale, drop, memory)
    if over and len([pair for pair in adapters if pair]) < len(adapters):
        out_TO.zero_()
    for place in _places(adapters, frozen.outputs):
        b_PR, out_TP = place.pair[1].to(x_TI.dtype), out_TO[:, place.outputs]
        product(down_TS[:, place.ranks], b_PR, out_TP, transpose_b=True, add=not over)


def _is_fused(x_TI: Tensor, frozen: FrozenGroup, out_TO: Tensor) -> bool:
    return (
        len(x_TI) <= _fused.rows
        and frozen.dense_OI is None
        and select.uses_triton(x_TI, out_TO)
        and frozen.weights[0].shape[1] % nf4.BLOCK == 0
    )


def _project_fused(
    x_TI: Tensor,
    frozen: FrozenGroup,
    adapters: Sequence[Pair | None],
    down_TS: Tensor,
    out_TO: Tensor,
    *,
    add: bool,
) -> None:
    from strop.kernels.triton import qlora_matmul as kernels

    places = {place.index: place for place in _places(adapters, frozen.outputs)}
    for index, (weight, out_TP) in enumerate(zip(frozen.weights, out_TO.split(frozen.outputs, dim=1), strict=True)):
        place = places.get(index)
        if place is None:
            kernels.product(x_TI, weight, out_TP, None, None, add=add)
        else:
            b_PR = place.pair[1].to(x_TI.dtype).contiguous()
            kernels.product(x_TI, weight, out_TP, down_TS[:, place.ranks], b_PR, add=add)
    if frozen.bias_O is not None:
        out_TO += frozen.bias_O.to(out_TO.dtype)


def project_backward(
    grad_TO: Tensor,
    x_TI: Tensor,
    frozen: FrozenGroup,
    adapters: Sequence[Pair | None],
    grads: Sequence[Pair | None],
    scale: float,
    drop: Dropout | None,
    memory: AdapterMemory,
    into_TI: Tensor | None,
) -> None:
    """The gradients of `project`: the adapters' are added to ``grads``, the input's overwrites ``into_TI``.

    Args:
        grad_TO: gradient of the outputs [T, sum of O_p].
        x_TI: the input that `project` had; it may lie in the same memory as ``into_TI``.
        frozen: the frozen base of the group.
        adapters: as for `project`.
        grads: (of A, of B) a projection, float32; they are added to.
        scale: alpha / rank.
        drop: as for `project`.
        memory: what the adapters work in.
        into_TI: the gradient of the input [T, I]; None where nothing below learns.
    """
    low = x_TI.dtype
    places = list(_places(adapters, frozen.outputs))
    down_TS = _down(x_TI, adapters, scale, drop, memory)
    grad_down_TS = memory.down_gradient.view(-1)[: down_TS.numel()].view(down_TS.shape)
    for place in places:
        grad_TP, b_PR = grad_TO[:, place.outputs], place.pair[1]
        product(grad_TP, b_PR.to(low), grad_down_TS[:, place.ranks], alpha=scale)
        _accumulate(grad_TP, down_TS[:, place.ranks], _gradients(grads, place)[1])
    if drop is None and low is not torch.float32:
        # One product for the group: each would read x again. In float32 each adds to its gradient by itself.
        grad_a_SI = product_in_float32(grad_down_TS.T, x_TI)
        for place in places:
            _gradients(grads, place)[0].add_(grad_a_SI[place.ranks])
    else:
        for place in places:
            dropped_TI = _input(x_TI, drop, place.index, memory)
            _accumulate(grad_down_TS[:, place.ranks], dropped_TI, _gradients(grads, place)[0])
    if into_TI is None:
        return
    small_first = _rounds(into_TI, adapters)
    if small_first:
        into_TI.zero_()
        _add_input_gradients(grad_down_TS, places, drop, memory, into_TI)
    for number, (rows, weight_BI) in enumerate(frozen.blocks(low)):
        product(grad_TO[:, rows], weight_BI, into_TI, add=number > 0 or small_first)
    if not small_first:
        _add_input_gradients(grad_down_TS, places, drop, memory, into_TI)


def _add_input_gradients(
    grad_down_TS: Tensor, places: Sequence[_Place], drop: Dropout | None, memory: AdapterMemory, into_TI: Tensor
) -> None:
    """Adds the adapters' part of the input's gradient."""
    low = into_TI.dtype
    if drop is None and places:
        product(grad_down_TS, _stacked([place.pair[0].to(low) for place in places]), into_TI, add=True)
    elif drop is not None:
        for place in places:
            dropped_TI = product(grad_down_TS[:, place.ranks], place.pair[0].to(low), _room(memory, into_TI))
            add_dropped(dropped_TI, drop.key_T, drop.salts[place.index], drop.probability, into_TI)


@dataclass(frozen=True, slots=True)
class _Place:
    """An adapter's place in its group: its number, its columns among all ranks and among all outputs."""

    index: int
    ranks: slice
    outputs: slice
    pair: Pair


def _gradients(grads: Sequence[Pair | None], place: _Place) -> Pair:
    pair = grads[place.index]
    assert pair is not None, "an adapter's gradients have memory"
    return pair


def _places(adapters: Sequence[Pair | None], outputs: Sequence[int]) -> Iterator[_Place]:
    """The adapters of a group: ranks side by side, outputs side by side."""
    rank = first = 0
    for index, (pair, count) in enumerate(zip(adapters, outputs, strict=True)):
        if pair is not None:
            size = len(pair[0])
            yield _Place(index, slice(rank, rank + size), slice(first, first + count), pair)
            rank += size
        first += count


def _down(
    x_TI: Tensor, adapters: Sequence[Pair | None], scale: float, drop: Dropout | None, memory: AdapterMemory
) -> Tensor:
    """s · m(x) Aᵀ of every adapter side by side [T, S]."""
    matrices = {index: pair[0].to(x_TI.dtype) for index, pair in enumerate(adapters) if pair is not None}
    ranks = sum(len(a_RI) for a_RI in matrices.values())
    down_TS = memory.down.view(-1)[: len(x_TI) * ranks].view(len(x_TI), ranks)
    if drop is None and matrices:
        # One product for the group: each would read x again.
        return product(x_TI, _stacked(list(matrices.values())), down_TS, transpose_b=True, alpha=scale)
    first = 0
    for index, a_RI in matrices.items():
        columns_TR = down_TS[:, first : first + len(a_RI)]
        product(_input(x_TI, drop, index, memory), a_RI, columns_TR, transpose_b=True, alpha=scale)
        first += len(a_RI)
    return down_TS


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    """Matrices of one width below one another: as they lie, where they do so in one piece of memory, else a copy."""
    first = matrices[0]
    end = first.data_ptr()
    for matrix in matrices:
        same = matrix.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and matrix.is_contiguous() and matrix.data_ptr() == end):
            return torch.cat(list(matrices))
        end += matrix.nbytes
    return first.as_strided((sum(map(len, matrices)), first.shape[1]), (first.shape[1], 1), first.storage_offset())


def _input(x_TI: Tensor, drop: Dropout | None, index: int, memory: AdapterMemory) -> Tensor:
    """m(x) of one projection."""
    if drop is None:
        return x_TI
    return dropout_into(x_TI, drop.key_T, drop.salts[index], drop.probability, _room(memory, x_TI))


def _room(memory: AdapterMemory, like_TI: Tensor) -> Tensor:
    assert memory.dropped is not None, "memory for dropout is laid out where there is dropout"
    return memory.dropped.view(-1)[: like_TI.numel()].view(like_TI.shape)


def _accumulate(left_TM: Tensor, right_TN: Tensor, into_MN: Tensor) -> None:
    """into += leftᵀ right, in into's dtype."""
    if into_MN.dtype is left_TM.dtype:
        product(left_TM, right_TN, into_MN, transpose_a=True, add=True)
    else:
        into_MN.add_(product_in_float32(left_TM.T, right_TN))


def qlora_linear(
    x_TI: Tensor,
    frozen: FrozenGroup,
    adapters: Sequence[tuple[Tensor, Tensor] | None],
    scale: float,
    drop: Dropout | None = None,
) -> Tensor:
    """Applies a group of projections to their common input.

    Args:
        x_TI: input [T, I].
        frozen: the frozen base of the group.
        adapters: (A [R, I], B [O_p, R]) a projection, or None where it has no adapter.
        scale: alpha / rank.
        drop: dropout on the adapters' inputs, or None.

    Returns:
        All outputs side by side [T, sum of O_p], in the dtype of x.
    """
    flat = [tensor for pair in adapters for tensor in (pair or (None, None))]
    result: Tensor = _QLoRALinear.apply(x_TI, frozen, scale, drop, *flat)
    return result


class _QLoRALinear(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, frozen: FrozenGroup, scale: float, drop: Dropout | None, *flat: Tensor | None
    ) -> Tensor:
        y_TO = x_TI.new_empty(len(x_TI), sum(frozen.outputs))
        for rows, weight_BI in frozen.blocks(x_TI.dtype):
            y_TO[:, rows] = x_TI @ weight_BI.T
        if frozen.bias_O is not None:
            y_TO += frozen.bias_O.to(x_TI.dtype)
        for index, y_TP in enumerate(y_TO.split(frozen.outputs, dim=1)):
            a_RI, b_PR = flat[2 * index], flat[2 * index + 1]
            if a_RI is not None and b_PR is not None:
                down_TR = _dropped(x_TI, drop, index) @ a_RI.to(x_TI.dtype).T
                y_TP.addmm_(down_TR, b_PR.to(x_TI.dtype).T, alpha=scale)
        ctx.save_for_backward(x_TI, *flat)
        ctx.frozen, ctx.scale, ctx.drop = frozen, scale, drop
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, *flat = ctx.saved_tensors
        frozen, scale, drop = ctx.frozen, ctx.scale, ctx.drop
        grad_TO = grads[0].contiguous()
        grad_x_TI = None
        if ctx.needs_input_grad[0]:
            grad_x_TI = torch.zeros_like(x_TI)
            for rows, weight_BI in frozen.blocks(grad_TO.dtype):
                grad_x_TI.addmm_(grad_TO[:, rows], weight_BI)
        grad_flat: list[Tensor | None] = [None] * len(flat)
        for index, grad_TP in enumerate(grad_TO.split(frozen.outputs, dim=1)):
            a_RI, b_PR = flat[2 * index], flat[2 * index + 1]
            if a_RI is None:
                continue
            a_RI_low, b_PR_low = a_RI.to(x_TI.dtype), b_PR.to(x_TI.dtype)
            dropped_TI = _dropped(x_TI, drop, index)
            grad_down_TR = (grad_TP @ b_PR_low) * scale
            grad_flat[2 * index] = (grad_down_TR.T @ dropped_TI).to(a_RI.dtype)
            grad_flat[2 * index + 1] = (grad_TP.T @ (dropped_TI @ a_RI_low.T)).to(b_PR.dtype) * scale
            if grad_x_TI is not None:
                _add_input_gradient(grad_x_TI, grad_down_TR, a_RI_low, drop, index)
        return grad_x_TI, None, None, None, *grad_flat


def _dropped(x_TI: Tensor, drop: Dropout | None, index: int) -> Tensor:
    return x_TI if drop is None else dropout(x_TI, drop.key_T, drop.salts[index], drop.probability)


def _add_input_gradient(
    grad_x_TI: Tensor, grad_down_TR: Tensor, a_RI: Tensor, drop: Dropout | None, index: int
) -> None:
    """Adds mᵀ(grad_down A) in place."""
    if drop is None:
        grad_x_TI.addmm_(grad_down_TR, a_RI)
        return
    keep_TI = keep_mask(drop.key_T, drop.salts[index], a_RI.shape[1], drop.probability)
    grad_x_TI.add_((grad_down_TR @ a_RI) * keep_TI, alpha=1.0 / (1.0 - drop.probability))
