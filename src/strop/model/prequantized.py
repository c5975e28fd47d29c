"""Checkpoints that are quantised already: bitsandbytes' NF4 is taken as it is, everything else is refused.

    model.layers.0.self_attn.q_proj.weight                                  uint8 [weights / 2, 1]   two codes a byte
    …weight.absmax                  uint8 [blocks], or float32 without double quantisation
    …weight.nested_absmax           float32 [blocks / 256]
    …weight.quant_map, …weight.nested_quant_map                             the two code books
    …weight.quant_state.bitsandbytes__nf4                                   JSON: shape, block sizes, nested_offset

These are the parts of an `NF4Tensor`, byte for byte. A checkpoint without double quantisation keeps a float32 for each
block; those are quantised once more, which gives what Strop would have made of the original weights: the codes are the
checkpoint's, and a block's scale moves by at most a hundredth or so of the largest in 256.

Weights that the checkpoint left in 16 bits are quantised as any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from strop.errors import ModelError
from strop.foreign import parse_json

if TYPE_CHECKING:
    from torch import Tensor

    from strop.kernels.nf4 import NF4Tensor

STATE = ".quant_state.bitsandbytes__"
_KIND = "nf4"
_BLOCKS = {"blocksize": 64, "nested_blocksize": 256}
_ORIGINAL = "use the original model in 16 bits; Strop makes NF4 of it as it is read"


class RawTensors(Protocol):
    """Where the parts come from: `strop.model.weights.WeightReader`."""

    folder: Path

    def raw(self, name: str) -> Tensor:
        """A tensor as the file has it."""


@dataclass(frozen=True, slots=True)
class PackedState:
    """What is known of a quantised weight besides its arrays.

    Attributes:
        shape: the weight's shape.
        nested: whether the scales are quantised too.
        offset: what was taken off the scales before that.
    """

    shape: tuple[int, ...]
    nested: bool
    offset: float


def check_quantization(config: Any, place: Path) -> None:
    """Lets a config's ``quantization_config`` pass where it is none, or bitsandbytes' 4-bit NF4.

    Raises:
        ModelError: another method, FP4, int8; with the way out.
    """
    if config is None:
        return
    found = config if isinstance(config, dict) else {}
    method = found.get("quant_method", "bitsandbytes" if "load_in_4bit" in found else None)
    if method == "bitsandbytes" and found.get("load_in_4bit") and found.get("bnb_4bit_quant_type") == _KIND:
        return
    kind = f"quant_method {method!r}"
    if method == "bitsandbytes":
        kind = f"int8 of {method}" if found.get("load_in_8bit") else f"{found.get('bnb_4bit_quant_type')} of {method}"
    raise ModelError(
        f"{place}: quantization_config names a quantisation that is not read",
        expected="no quantisation, or bitsandbytes 4-bit with bnb_4bit_quant_type nf4",
        found=kind,
        do=_ORIGINAL,
    )


def read_state(reader: RawTensors, state_name: str) -> tuple[str, PackedState]:
    """The name of a quantised weight and its state, from the name of the tensor that holds the state.

    Raises:
        ModelError: another data type or block size than NF4's, or a state that cannot be read.
    """
    name, _, kind = state_name.partition(STATE)
    try:
        state = parse_json(bytes(reader.raw(state_name).tolist()))
        shape = tuple(int(size) for size in state["shape"])
        nested = "nested_offset" in state
        offset = float(state.get("nested_offset", 0.0))
        blocks = {key: state.get(key, size) for key, size in _BLOCKS.items()}
        if not shape or min(shape) < 1 or prod(shape) > 1 << 40 or not isfinite(offset):
            raise ValueError(f"shape {list(shape)}, offset {offset}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{reader.folder}: {state_name} cannot be read", found=str(error), do="fetch the model again"
        ) from None
    if kind != _KIND or state.get("quant_type") != _KIND or blocks != _BLOCKS:
        sizes = ", ".join(f"{key} {size}" for key, size in blocks.items())
        raise ModelError(
            f"{reader.folder}: tensor {name} is quantised in another way",
            expected=f"{_KIND}, {', '.join(f'{key} {size}' for key, size in _BLOCKS.items())}",
            found=f"{state.get('quant_type')}, {sizes}",
            do=_ORIGINAL,
        )
    return name, PackedState(shape, nested, offset)


def read_packed(reader: RawTensors, name: str, state: PackedState) -> NF4Tensor:
    """A quantised weight, its bytes those of the file.

    Raises:
        ModelError: a part is missing, of another size, or its code book is not NF4's.
    """
    import torch

    from strop.kernels import nf4

    count = prod(state.shape)
    blocks = -(-count // nf4.BLOCK)
    packed = _part(reader, name, "", torch.uint8, -(-count // 2))
    _check_codes(reader, f"{name}.quant_map", nf4.nf4_code())
    if not state.nested:
        absmax_B = _part(reader, name, ".absmax", torch.float32, blocks)
        return nf4.from_absmax(packed, absmax_B, state.shape)
    _check_codes(reader, f"{name}.nested_quant_map", nf4.dynamic8_code())
    return nf4.NF4Tensor(
        packed,
        _part(reader, name, ".absmax", torch.uint8, blocks),
        _part(reader, name, ".nested_absmax", torch.float32, -(-blocks // nf4.NESTED_BLOCK)),
        torch.tensor(state.offset, dtype=torch.float32),
        state.shape,
    )


def _part(reader: RawTensors, name: str, suffix: str, dtype: Any, count: int) -> Tensor:
    try:
        tensor = reader.raw(name + suffix).reshape(-1)
    except KeyError:
        raise _damaged(reader, name, f"{name}{suffix}", "no such tensor") from None
    if tensor.dtype is not dtype or tensor.numel() != count:
        raise _damaged(reader, name, f"{count} numbers, {dtype}", f"{tensor.numel()} numbers, {tensor.dtype}")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise _damaged(reader, name, "finite numbers", "numbers that are not finite")
    return tensor


def _check_codes(reader: RawTensors, name: str, expected: Tensor) -> None:
    try:
        found = reader.raw(name).reshape(-1).float()
    except KeyError:
        raise _damaged(reader, name, name, "no such tensor") from None
    # Versions of bitsandbytes computed the books in other orders: they agree to a unit in the last place.
    if found.shape != expected.shape or (found - expected).abs().max() > 1e-6:
        raise _damaged(reader, name, "the code book of NF4 with double quantisation", "another code book")


def _damaged(reader: RawTensors, name: str, expected: str, found: str) -> ModelError:
    return ModelError(
        f"{reader.folder}: the quantised tensor {name} is not whole", expected=expected, found=found, do=_ORIGINAL
    )


def states_of(reader: RawTensors, names: Mapping[str, Any]) -> dict[str, PackedState]:
    """The states of all quantised weights among a file's tensors.

    Raises:
        ModelError: as `read_state`.
    """
    return dict(read_state(reader, name) for name in names if STATE in name)
