"""What a plan holds, and the plan that is taken when nobody names a budget.

The default is a rule, not a search: the device that is there, packs that are long enough to keep it busy, activations
kept where the estimate below says that they fit into half of the free memory, and dequantised copies of the base for as
many layers as fit into a quarter of it. Every lever can be set by hand (`--plan.pack_tokens 4096`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from strop.errors import UsageError
from strop.model.spec import DecoderSpec

_DTYPES = ("float32", "bfloat16")
_RECOMPUTE = ("none", "layer")

# Lowest and highest value of whole numbers: those that differ from 1 … 2^31 − 1.
_RANGES = {"dense_layers": (0, 2**31 - 1), "threads": (1, 1024)}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is computed.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        dtype: dtype of activations and products: "float32" or "bfloat16".
        pack_tokens: most tokens in a pack; a longer document has a pack of its own.
        recompute: "none" keeps activations for the backward pass; "layer" keeps each layer's input alone.
        dense_layers: layers that keep a dequantised copy of their weights.
        loss_chunk: learned tokens whose logits exist at one time.
        threads: threads of a CPU.
    """

    device: str
    dtype: str
    pack_tokens: int
    recompute: str
    dense_layers: int
    loss_chunk: int
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """The plan as plan.json holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the default plan looks at."""

    device: str
    free_bytes: int
    cores: int


def probe() -> Machine:
    """The device that is there, its free memory and the physical cores of the CPU."""
    import psutil
    import torch

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else cores
    if torch.cuda.is_available():
        return Machine("cuda", torch.cuda.mem_get_info()[0], min(cores, usable))
    return Machine("cpu", psutil.virtual_memory().available, min(cores, usable))


def activation_bytes(spec: DecoderSpec, tokens: int, itemsize: int) -> int:
    """Bytes that one layer keeps for its backward pass without recompute.

    Per token: both norms' inputs and results (4 D), q, k, v and their rotated copies, attention's result and its input
    to the output projection, gate and up, and their product.
    """
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    numbers = 4 * spec.hidden + 2 * (queries + keys) + keys + 2 * queries + 3 * spec.intermediate
    return tokens * numbers * itemsize


def default_plan(spec: DecoderSpec, longest: int, machine: Machine, overrides: Mapping[str, str] | None = None) -> Plan:
    """The plan for a machine, with levers set by hand on top.

    Args:
        spec: the model.
        longest: tokens of the longest sample.
        machine: from `probe`.
        overrides: lever → value as text.

    Raises:
        UsageError: an unknown lever, a value it cannot have, or a device that is not there.
    """
    device = check_device((overrides or {}).get("device", machine.device))
    cuda = device.startswith("cuda")
    dtype, itemsize = ("bfloat16", 2) if cuda else ("float32", 4)
    pack_tokens = max(8192 if cuda else 2048, longest)
    kept = spec.layers * activation_bytes(spec, pack_tokens, itemsize)
    layer_bytes = spec.linear_weights // spec.layers * itemsize
    plan = Plan(
        device=device,
        dtype=dtype,
        pack_tokens=pack_tokens,
        recompute="none" if kept < machine.free_bytes // 2 else "layer",
        dense_layers=min(spec.layers, machine.free_bytes // 4 // layer_bytes),
        loss_chunk=1024 if cuda else 256,
        threads=machine.cores,
    )
    return _override(plan, overrides or {})


def plan_from_dict(values: Mapping[str, Any]) -> Plan:
    """The plan that plan.json holds."""
    return Plan(**{item.name: values[item.name] for item in fields(Plan)})


def check_device(name: str) -> str:
    """The name of a device, if it is there.

    Raises:
        UsageError: it is not, or the name is none.
    """
    import torch

    kind, _, number = name.partition(":")
    known = kind in ("cpu", "cuda") and (not number or number.isdecimal())
    if known and kind == "cuda":
        known = torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
    if not known:
        raise UsageError(
            f"--plan.device {name}: there is no such device here",
            expected="cpu" + "".join(f" or cuda:{index}" for index in range(torch.cuda.device_count())),
            found=name,
            do="leave --plan.device out; strop doctor says what is there",
        )
    return name


def _override(plan: Plan, overrides: Mapping[str, str]) -> Plan:
    known = {item.name: item.type for item in fields(Plan)}
    values = plan.as_dict()
    for name, text in overrides.items():
        if name not in known:
            raise UsageError(
                f"--plan.{name} is no lever of the plan",
                expected="one of " + ", ".join(known),
                found=name,
                do="for example --plan.pack_tokens 4096",
            )
        values[name] = _value(name, str(text), known[name] == "int")
    return plan_from_dict(values)


def _value(name: str, text: str, whole: bool) -> str | int:
    allowed = {"dtype": _DTYPES, "recompute": _RECOMPUTE}.get(name)
    lowest, highest = _RANGES.get(name, (1, 2**31 - 1))
    fits = text.isdecimal() and lowest <= int(text) <= highest
    valid = text in allowed if allowed else fits if whole else bool(text)
    if not valid:
        wanted = " or ".join(allowed) if allowed else f"a whole number, {lowest} to {highest}" if whole else "a device"
        raise UsageError(
            f"--plan.{name} cannot be {text!r}", expected=wanted, found=text, do=f"give --plan.{name} {wanted}"
        )
    return int(text) if whole else text
