"""What a plan holds: the levers that decide memory and time, and never the result.

`strop.plan.choose` searches for the fastest plan inside a budget. Every lever can be set by hand
(`--plan.pack_tokens 4096`); the search then takes it as given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from strop.errors import UsageError

if TYPE_CHECKING:
    from strop.model.workspace import Work

CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "head": ("dense", "stored"),
    "embedding": ("memory", "file", "host"),
    "prefixes": ("shared", "repeated"),
    "matmul": ("amx", "openblas", "torch"),
    "attention": ("native", "triton", "varlen", "sdpa", "plain"),
    "checkpoints": ("device", "host"),
    "base": ("device", "host"),
}
"""The levers that are words, and their words."""

GENERAL: Mapping[str, str | int] = {
    "recompute_elementwise": 0,
    "head": "dense",
    "embedding": "memory",
    "prefixes": "repeated",
    "matmul": "torch",
    "attention": "native",
    "checkpoints": "device",
    "base": "device",
}
"""Levers that the general path has not, and what they are there."""

# Lowest and highest value of whole numbers: those that differ from 1 … 2^31 − 1.
_RANGES = dict.fromkeys(("recompute_layers", "recompute_elementwise", "dense_layers"), (0, 2**31 - 1))
_RANGES["threads"] = (1, 1024)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is computed.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        dtype: dtype of activations and products: "float32" or "bfloat16"; a CPU's is what it is faster in.
        pack_tokens: most tokens in a pack; a longer document has a pack of its own.
        recompute_layers: layers, from the bottom, that keep their input alone and are computed a second time.
        recompute_elementwise: layers above those whose norms and gated products are made a second time.
        dense_layers: layers that keep a dequantised copy of their weights.
        head: "dense" keeps the head in the compute dtype; "stored" as the model's file has it, widened in blocks.
        embedding: "memory", "file" to read rows when needed, "host" for a GPU's on the host (a tied one is the head).
        loss_chunk: learned tokens whose logits exist at one time.
        prefixes: "shared" computes what the samples of a pack begin with once, where no dropout tells them apart.
        matmul: what computes a CPU's products: "openblas" in float32, "amx" in bfloat16, or "torch".
        threads: threads of a CPU.
        attention: what computes attention on a GPU; a CPU has its own, "native".
        checkpoints: "device", or "host" where layers that are computed a second time keep their input, for a GPU.
        base: "device", or "host" to keep it in the machine's memory, whence it comes to a GPU layer by layer.
    """

    device: str
    dtype: str
    pack_tokens: int
    recompute_layers: int
    recompute_elementwise: int
    dense_layers: int
    head: str
    embedding: str
    loss_chunk: int
    prefixes: str
    matmul: str
    threads: int
    attention: str = "native"
    checkpoints: str = "device"
    base: str = "device"

    @property
    def on_gpu(self) -> bool:
        """Whether a CUDA device computes."""
        return self.device.startswith("cuda")

    def as_dict(self) -> dict[str, Any]:
        """The plan as plan.json holds it."""
        return asdict(self)

    def shares_prefixes(self, dropout: float) -> bool:
        """Whether packs share prefixes: a dropout mask belongs to a sample, so that with dropout no two are alike."""
        return self.prefixes == "shared" and dropout == 0

    def work(self, *, tokens: int, learned: int, targets: Sequence[str], rank: int, dropout: float) -> Work:
        """What the engine lays its memory out for.

        Args:
            tokens: tokens of the largest pack.
            learned: learned tokens of the pack that has most of them.
            targets: the adapter's projections.
            rank: the adapter's rank.
            dropout: the adapter's dropout.
        """
        import torch

        from strop.model.workspace import Work

        return Work(
            tokens=tokens,
            learned=max(learned, 1),
            whole_layers=self.recompute_layers,
            elementwise_layers=self.recompute_elementwise,
            loss_chunk=self.loss_chunk,
            targets=tuple(targets),
            rank=rank,
            dropout=dropout > 0,
            dense_head=self.head == "dense",
            dtype=getattr(torch, self.dtype),
            host_inputs=self.checkpoints == "host",
        )


LEVERS = {item.name: item.type == "int" for item in fields(Plan)}
"""Every lever, and whether it is a whole number."""

LATER = {item.name: item.default for item in fields(Plan) if item.default is not MISSING}
"""Levers that older plans do not name, with what they were then."""


def plan_from_dict(values: Mapping[str, Any]) -> Plan:
    """The plan that plan.json holds, an older one's too.

    Raises:
        KeyError: a lever that every plan has is not there.
    """
    return Plan(**{name: values.get(name, LATER[name]) if name in LATER else values[name] for name in LEVERS})


def read_levers(overrides: Mapping[str, str]) -> dict[str, str | int]:
    """Levers set by hand, from text.

    Raises:
        UsageError: an unknown lever, a value it cannot have, two that exclude each other, or no such device.
    """
    levers: dict[str, str | int] = {}
    for name, text in overrides.items():
        if name not in LEVERS:
            raise UsageError(
                f"--plan.{name} is no lever of the plan",
                expected="one of " + ", ".join(LEVERS),
                found=name,
                do="for example --plan.pack_tokens 4096",
            )
        levers[name] = check_device(str(text)) if name == "device" else _value(name, str(text), LEVERS[name])
    asked = f"{levers.get('matmul')} {levers.get('dtype')}"
    if asked in ("openblas bfloat16", "amx float32"):
        raise UsageError(
            f"--plan.matmul {levers['matmul']} does nothing in {levers['dtype']}",
            expected="openblas with float32, amx with bfloat16, or torch",
            found=f"--plan.dtype {levers['dtype']} --plan.matmul {levers['matmul']}",
            do="leave one of the two out",
        )
    return levers


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


def _value(name: str, text: str, whole: bool) -> str | int:
    allowed = CHOICES.get(name)
    lowest, highest = _RANGES.get(name, (1, 2**31 - 1))
    fits = text.isdecimal() and lowest <= int(text) <= highest
    valid = text in allowed if allowed else fits
    if not valid:
        wanted = " or ".join(allowed) if allowed else f"a whole number, {lowest} to {highest}"
        raise UsageError(
            f"--plan.{name} cannot be {text!r}", expected=wanted, found=text, do=f"give --plan.{name} {wanted}"
        )
    return int(text) if whole else text
