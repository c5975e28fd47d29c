"""NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3), bit-identical to bitsandbytes.

A weight tensor, read row by row, is cut into blocks of 64. Each block keeps its largest magnitude (absmax), and each
of its weights the number of the nearest of 16 quantiles of the normal distribution, scaled by absmax; two weights
make a byte, the first in the high four bits. The absmax values, less their mean, are quantised once more: blocks of
256, 8-bit dynamic code (Dettmers et al. 2022, arXiv:2110.02861). A weight costs 4 + 8/64 + 32/(64·256) = 4.127 bits.

    64 weights ─▶ 32 bytes `packed` + 1 byte `absmax8`;   256 absmax8 ─▶ 4 bytes `nested_absmax`;   1 `offset` a tensor

The 8-bit step follows bitsandbytes 0.50 on CPUs, which rounds each value to one of 65,536 grid points before it looks
up the nearest code (`docs/decisions/0003-nf4-bytes.md`).

On CPUs the native library does the work, where there is one, and on CUDA devices a Triton kernel undoes it; the torch
below is the reference, with the same bytes. The tables are made here for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from strop.kernels import library, select
from strop.kernels.widen import KINDS

BLOCK = 64
NESTED_BLOCK = 256
_GRID = 65535
# Bytes of `packed` unpacked at once on a CPU: the indices and results of a slice (2 MiB) stay in the caches.
# SmolLM2's 106 M weights on 2 cores: 0.29 s a tensor at once, 0.15 s in slices.
_CPU_SLICE = 1 << 17
# Weights quantised at once on a CPU: bounds the working memory to about 10 MiB, whatever the tensor's size.
_CPU_QUANTIZE_SLICE = 1 << 20
# The same on other devices: about 16 bytes a weight, 64 MiB.
QUANTIZE_SLICE = 1 << 22

NF4_CODE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, slots=True)
class NF4Tensor:
    """A tensor in NF4 with double quantisation.

    Attributes:
        packed: uint8 [ceil(weights / 2)], two 4-bit codes a byte, the first in the high bits.
        absmax8: uint8 [ceil(weights / 64)], the 8-bit code of each block's absmax.
        nested_absmax: float32 [ceil(blocks / 256)].
        offset: float32 scalar, the mean of the absmax values.
        shape: the shape of the weights.
    """

    packed: Tensor
    absmax8: Tensor
    nested_absmax: Tensor
    offset: Tensor
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in memory."""
        return sum(part.nbytes for part in (self.packed, self.absmax8, self.nested_absmax, self.offset))

    def to(self, device: torch.device | str) -> NF4Tensor:
        """The same tensor on another device."""
        return NF4Tensor(
            self.packed.to(device),
            self.absmax8.to(device),
            self.nested_absmax.to(device),
            self.offset.to(device),
            self.shape,
        )


def size_bytes(weights: int) -> int:
    """Bytes of so many weights of one tensor: codes, scales of blocks, scales of these, and their offset."""
    blocks = -(-weights // BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // NESTED_BLOCK) + 4


def quantize(weight: Tensor) -> NF4Tensor:
    """Quantises a float tensor of any shape; equals ``bitsandbytes.functional.quantize_4bit(quant_type="nf4")``.

    Args:
        weight: floating point, finite, any shape.

    Returns:
        The NF4 tensor on the same device.
    """
    values_N = weight.detach().reshape(-1)
    if values_N.dtype in KINDS and select.uses_native(values_N, dtype=values_N.dtype):
        packed, absmax_B = _quantize_native(values_N)
    else:
        step = _CPU_QUANTIZE_SLICE if weight.device.type == "cpu" else QUANTIZE_SLICE
        slices = [_quantize_slice(part) for part in values_N.split(step)]
        packed, absmax_B = (torch.cat(parts) for parts in zip(*slices, strict=True))
    return from_absmax(packed, absmax_B, tuple(weight.shape))


def from_absmax(packed: Tensor, absmax_B: Tensor, shape: tuple[int, ...]) -> NF4Tensor:
    """The double quantisation alone, of codes whose scales are still in full.

    Args:
        packed: uint8 [ceil(weights / 2)].
        absmax_B: float32 [blocks].
        shape: the shape of the weights.
    """
    # A mean depends on the order of its sum. One number in 64 goes to the CPU, so that all devices have the same bytes.
    absmax_B = absmax_B.cpu()
    offset = absmax_B.mean()
    absmax8, nested_absmax = _quantize_dynamic8(absmax_B - offset)
    device = packed.device
    return NF4Tensor(packed, absmax8.to(device), nested_absmax.to(device), offset.to(device), shape)


def nf4_code() -> Tensor:
    """float32 [16]: the code book of the weights."""
    return _nf4_code(torch.device("cpu"))


def dynamic8_code() -> Tensor:
    """float32 [256]: the code book of the scales."""
    return _dynamic8_code(torch.device("cpu"))


def tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Both code books on a device: of weights [16] and of scales [256]."""
    return _nf4_code(device), _dynamic8_code(device)


def _quantize_native(values_N: Tensor) -> tuple[Tensor, Tensor]:
    count = values_N.numel()
    packed = torch.empty(-(-count // 2), dtype=torch.uint8)
    absmax_B = torch.empty(-(-count // BLOCK), dtype=torch.float32)
    midpoints = _nf4_midpoints()
    library.function("nf4_quantize", "pilppp")(
        *(values_N.data_ptr(), KINDS[values_N.dtype], count, midpoints.data_ptr()),
        *(packed.data_ptr(), absmax_B.data_ptr()),
    )
    return packed, absmax_B


def _quantize_slice(values_N: Tensor) -> tuple[Tensor, Tensor]:
    """Packed codes and absmax of some blocks; only a tensor's last slice may end in a partial block."""
    absmax_B, scaled_N = _scale_to_blocks(values_N.float())
    code_N = torch.zeros(scaled_N.shape, dtype=torch.uint8, device=scaled_N.device)
    above_N = torch.empty(scaled_N.shape, dtype=torch.bool, device=scaled_N.device)
    # A code is the number of midpoints below the value. 15 comparisons take half the time of torch.bucketize.
    for midpoint in _nf4_midpoints().tolist():
        torch.gt(scaled_N, midpoint, out=above_N)
        code_N += above_N.view(torch.uint8)
    if code_N.numel() % 2:
        # The missing last weight counts as zero, whose code is 7.
        code_N = torch.nn.functional.pad(code_N, (0, 1), value=7)
    return (code_N[0::2] << 4) | code_N[1::2], absmax_B


def dequantize(tensor: NF4Tensor, out: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights again; equals ``bitsandbytes.functional.dequantize_4bit``.

    Args:
        tensor: the NF4 tensor.
        out: a contiguous float tensor to write into, of any shape with as many elements; decides the dtype.
        dtype: dtype of the result when ``out`` is not given.

    Returns:
        ``out``, or a new tensor of the NF4 tensor's shape.
    """
    if out is None:
        out = torch.empty(tensor.shape, dtype=dtype, device=tensor.packed.device)
    _dequantize_weights(tensor, 0, prod(tensor.shape), out.view(-1))
    return out


def dequantize_rows(tensor: NF4Tensor, first_row: int, rows: int, out: Tensor) -> Tensor:
    """Some rows of the weights: how a large tensor is read in parts.

    Args:
        tensor: the NF4 tensor, of shape [O, …].
        first_row: the first row. Where it does not begin a block of 64 weights, the whole tensor is dequantised.
        rows: how many.
        out: a contiguous float tensor of as many elements to write into; decides the dtype.

    Returns:
        ``out``.
    """
    columns = prod(tensor.shape[1:])
    first, count = first_row * columns, rows * columns
    if first % BLOCK:
        return out.copy_(dequantize(tensor, dtype=out.dtype).view(-1)[first : first + count].view(out.shape))
    _dequantize_weights(tensor, first // BLOCK, count, out.view(-1))
    return out


def _dequantize_weights(tensor: NF4Tensor, first_block: int, count: int, out: Tensor) -> None:
    """``count`` weights from a block on, into a flat tensor."""
    if out.dtype in KINDS and select.uses_native(tensor.packed, dtype=torch.uint8) and out.is_cpu:
        _dequantize_native(tensor, first_block, out)
        return
    if select.uses_triton(out, tensor.nested_absmax, tensor.offset):
        _dequantize_triton(tensor, first_block, out)
        return
    blocks = -(-count // BLOCK)
    absmax_B = dequantize_absmax(tensor, first_block, blocks)
    packed = tensor.packed[first_block * BLOCK // 2 :][: -(-count // 2)]
    if out.dtype is torch.float32 and count % BLOCK == 0:
        _dequantize_float32(packed, absmax_B, out)
        return
    values = torch.empty(blocks * BLOCK, dtype=torch.float32, device=out.device)
    missing = values.numel() // 2 - packed.numel()
    _dequantize_float32(torch.nn.functional.pad(packed, (0, missing)) if missing else packed, absmax_B, values)
    out.copy_(values[:count])


def _dequantize_native(tensor: NF4Tensor, first_block: int, out: Tensor) -> None:
    device = tensor.packed.device
    library.function("nf4_dequantize", "pppfppllpi")(
        *(tensor.packed.data_ptr(), tensor.absmax8.data_ptr(), tensor.nested_absmax.data_ptr(), tensor.offset.item()),
        *(_nf4_code(device).data_ptr(), _dynamic8_code(device).data_ptr(), first_block, out.numel()),
        *(out.data_ptr(), KINDS[out.dtype]),
    )


def _dequantize_triton(tensor: NF4Tensor, first_block: int, out: Tensor) -> None:
    from strop.kernels.triton import nf4 as kernels

    kernels.dequantize(
        *(tensor.packed, tensor.absmax8, tensor.nested_absmax, tensor.offset, *tables(out.device), first_block, out)
    )


def dequantize_absmax(tensor: NF4Tensor, first_block: int = 0, blocks: int | None = None) -> Tensor:
    """The absmax of each block, or of some: float32 [blocks]."""
    codes = tensor.absmax8[first_block:][:blocks]
    nested_first, skipped = divmod(first_block, NESTED_BLOCK)
    nested = tensor.nested_absmax[nested_first : nested_first + -(-(skipped + codes.numel()) // NESTED_BLOCK)]
    nested_B = nested.repeat_interleave(NESTED_BLOCK)[skipped : skipped + codes.numel()]
    return _dynamic8_code(codes.device)[codes.long()] * nested_B + tensor.offset


def _dequantize_float32(packed: Tensor, absmax_B: Tensor, out: Tensor) -> None:
    """Unpacks whole blocks into ``out``: one table look-up a byte gives two weights, then a scaling in place."""
    pairs_256 = _pair_table(packed.device)
    out_pairs = out.view(torch.int64)
    step = _CPU_SLICE if packed.device.type == "cpu" else packed.numel()
    for start in range(0, packed.numel(), max(step, 1)):
        end = min(start + step, packed.numel())
        torch.take(pairs_256, packed[start:end].long(), out=out_pairs[start:end])
        blocks = out[2 * start : 2 * end].view(-1, BLOCK)
        blocks.mul_(absmax_B[2 * start // BLOCK : 2 * end // BLOCK, None])


def _scale_to_blocks(values_N: Tensor) -> tuple[Tensor, Tensor]:
    """Absmax of each block of 64, and the values divided by it, in bitsandbytes' order of operations.

    Whole blocks are multiplied by the reciprocal, a last partial block is divided; both matter for the last bit.
    """
    whole = values_N.numel() // BLOCK * BLOCK
    blocks = values_N[:whole].view(-1, BLOCK)
    absmax_B = blocks.abs().amax(dim=-1)
    scaled = (blocks * (1.0 / absmax_B.clamp(min=1e-38))[:, None]).clamp_(-1, 1).reshape(-1)
    if whole < values_N.numel():
        rest = values_N[whole:]
        rest_absmax = rest.abs().amax().clamp(min=1e-38)
        absmax_B = torch.cat([absmax_B, rest_absmax[None]])
        scaled = torch.cat([scaled, (rest / rest_absmax).clamp_(-1, 1)])
    return absmax_B, scaled


def _quantize_dynamic8(values_B: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit dynamic codes in blocks of 256: uint8 [B] and float32 absmax [ceil(B / 256)]."""
    count = values_B.numel()
    if select.uses_native(values_B):
        codes = torch.empty(count, dtype=torch.uint8)
        absmax = torch.empty(-(-count // NESTED_BLOCK), dtype=torch.float32)
        grid = _grid_codes(values_B.device)
        library.function("nf4_quantize_absmax", "plppp")(
            values_B.data_ptr(), count, grid.data_ptr(), codes.data_ptr(), absmax.data_ptr()
        )
        return codes, absmax
    padded = torch.nn.functional.pad(values_B, (0, -count % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    absmax = padded.abs().amax(dim=-1)
    reciprocal = torch.where(absmax > 0, 1.0 / absmax, torch.zeros_like(absmax))
    # A denormal absmax has an infinite reciprocal, and zero times that is no number: such values count as zero.
    scaled = (padded * reciprocal[:, None]).nan_to_num_(nan=0.0).clamp_(-1, 1)
    codes = _grid_codes(scaled.device)[_grid_index(scaled)]
    codes[absmax == 0] = 0
    return codes.reshape(-1)[:count], absmax


def _grid_index(scaled: Tensor) -> Tensor:
    """The nearest of 65,536 grid points on [-1, 1], as int64; the sum is rounded once, as by a fused multiply-add."""
    half = (scaled + 1.0) * 0.5
    return (half.double() * _GRID + 0.5).float().long()


@cache
def _grid_codes(device: torch.device) -> Tensor:
    """uint8 [65536]: the nearest dynamic code of every grid point."""
    points = -1.0 + (2.0 * torch.arange(_GRID + 1, dtype=torch.float32)) / _GRID
    codes = torch.bucketize(points, _midpoints(_dynamic8_code(torch.device("cpu"))))
    return codes.to(torch.uint8).to(device)


def _midpoints(code: Tensor) -> Tensor:
    return (code[:-1] + code[1:]) / 2


@cache
def _nf4_code(device: torch.device) -> Tensor:
    return torch.tensor(NF4_CODE, dtype=torch.float32, device=device)


@cache
def _nf4_midpoints() -> Tensor:
    return _midpoints(_nf4_code(torch.device("cpu")))


@cache
def _pair_table(device: torch.device) -> Tensor:
    """int64 [256]: for each byte its two float32 codes side by side, seen as one 8-byte number."""
    code = _nf4_code(torch.device("cpu"))
    byte = torch.arange(256)
    return torch.stack([code[byte >> 4], code[byte & 15]], dim=1).view(torch.int64).reshape(-1).to(device)


@cache
def _dynamic8_code(device: torch.device) -> Tensor:
    """float32 [256], sorted: the signed dynamic 8-bit code of Dettmers et al. 2022, figure 2.

    Decade i of seven (10^-6 … 1) has 2^i values of either sign: the middles of 2^i equal parts of [0.1, 1]; zero and
    one complete the 256.
    """
    magnitudes: list[float] = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2.0
        magnitudes += (10 ** (decade - 6) * middles).tolist()
    values = sorted([*magnitudes, *(-value for value in magnitudes), 0.0, 1.0])
    return torch.tensor(values, dtype=torch.float32, device=device)
