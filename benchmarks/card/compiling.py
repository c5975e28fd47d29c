"""Triton's kernels compiled for a GPU that is not here, by the launches that a GPU would get.

    device_of(90)              Triton believes in a device of that generation; nothing can run on it
    Recorder(…).recording()    a launch compiles its kernel, as the device would have it, and goes no further
    resources(cubin)           registers, stack, and what the machine code is made of

Which launches share a kernel is Triton's own decision: its keys are made of dtypes, constants, and which pointers and
sizes 16 divides. That is why launches of tensors on a CPU tell how many kernels a card would compile.

Use it in a process of its own, with TRITON_INTERPRET=0: where Triton interprets kernels it cannot compile them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# Of a multiprocessor, by generation: registers, bytes of shared memory, warps, programs.
LIMITS = {80: (65536, 164 << 10, 64, 32), 89: (65536, 100 << 10, 48, 24), 90: (65536, 228 << 10, 64, 32)}
# A program takes so much shared memory beside its own.
_RESERVED = 1 << 10


class _NoDevice:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return self.target


@dataclass
class Kernel:
    """A kernel as one device compiles it.

    Attributes:
        name: module and function.
        constants: what it was made for.
        dtypes: what its pointers point at.
        warps: of a program.
        label: what was being done when it was first launched.
        seconds: of compiling; 0 where it was not compiled.
        launches: that it served.
        shared: bytes of shared memory.
        cubin: machine code; empty where it was not compiled.
    """

    name: str
    constants: dict[str, Any]
    dtypes: tuple[str, ...]
    warps: int
    label: str
    seconds: float = 0.0
    launches: int = 0
    shared: int = 0
    cubin: bytes = b""


@dataclass
class Recorder:
    """Collects the kernels that launches ask for.

    Attributes:
        compiles: whether they are compiled; else they are only told apart.
        label: what is being done.
        kernels: by Triton's key.
        grids: the largest grid that each function was launched with.
    """

    compiles: bool = True
    label: str = ""
    kernels: dict[tuple[str, str], Kernel] = field(default_factory=dict)
    grids: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @contextmanager
    def recording(self, capability: int = 90) -> Iterator[Recorder]:
        """Launches inside are recorded. The functions' own caches are left as they were."""
        before, active = JITFunction.run, driver._active
        driver.set_active(_NoDevice(capability))
        known: dict[int, Any] = {}

        def launch(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            if id(function) not in known:
                known[id(function)] = function.create_binder()
            self._launch(function, known[id(function)], args, grid, options)

        JITFunction.run = launch  # type: ignore[method-assign] # a launch has nowhere to go
        try:
            yield self
        finally:
            JITFunction.run = before  # type: ignore[method-assign]
            driver._active = active

    def _launch(self, function: Any, made: Any, args: Any, grid: Any, options: dict[str, Any]) -> None:
        from triton.runtime.jit import compute_cache_key

        _, keys, target, backend, binder = made
        options = {"debug": False, "instrumentation_mode": "", **options}
        bound, specialization, rest = binder(*args, **options)
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        key = (name, compute_cache_key(keys, specialization, rest))
        largest = self.grids.get(name, (0, 0, 0))
        self.grids[name] = tuple(map(max, largest, (*grid, 1, 1)[:3]))
        if key not in self.kernels:
            self.kernels[key] = self._made(function, name, target, backend, options, bound, specialization, rest)
        self.kernels[key].launches += 1

    def _made(self, function: Any, name: str, target: Any, backend: Any, options: Any, *parts: Any) -> Kernel:
        bound, specialization, rest = parts
        parsed, signature, constants, attributes = function._pack_args(backend, options, bound, specialization, rest)
        names = [parameter.name for parameter in function.params]
        told = {names[path[0]]: value for path, value in constants.items()}
        dtypes = tuple(sorted({kind[1:] for kind in signature.values() if kind.startswith("*")}))
        kernel = Kernel(name, told, dtypes, parsed.num_warps, self.label)
        if self.compiles:
            began = time.perf_counter()
            source = triton.compiler.ASTSource(function, signature, constants, attributes)
            compiled = triton.compile(source, target=target, options=parsed.__dict__)
            kernel.seconds = time.perf_counter() - began
            kernel.shared, kernel.cubin = compiled.metadata.shared, compiled.asm["cubin"]
        return kernel


# What of the machine code is counted, by what an instruction begins with.
_COUNTED = {
    "wgmma": r"HGMMA",
    "mma": r"HMMA",
    "fma": r"FFMA",
    "load 128": r"LDG\.E[\w.]*\.128",
    "load 64": r"LDG\.E[\w.]*\.64",
    "load 32": r"LDG\.E(?![\w.]*\.(?:128|64|U8|S8|U16|S16))",
    "load 16": r"LDG\.E[\w.]*\.[US]16",
    "load 8": r"LDG\.E[\w.]*\.[US]8",
    "async 128": r"LDGSTS\.E[\w.]*\.128",
    "async less": r"LDGSTS\.E(?![\w.]*\.128)",
    "store 128": r"STG\.E[\w.]*\.128",
    "store 64": r"STG\.E[\w.]*\.64",
    "store 32": r"STG\.E(?![\w.]*\.(?:128|64|U8|S8|U16|S16))",
    "store 16": r"STG\.E[\w.]*\.[US]16",
    "spill": r"(?:LDL|STL)",
}


def resources(kernel: Kernel, capability: int = 90) -> dict[str, Any]:
    """Registers a thread, bytes of stack and of shared memory, programs on a multiprocessor, and instructions.

    "loops" are the innermost ones that multiply matrices, each with its instructions of every kind, and of "all".
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.cubin)
        file.flush()
        usage, code = _tool("-res-usage", file.name), _instructions(_tool("-sass", file.name))
    told = dict(part.split(":") for part in usage.split() if part.startswith(("REG:", "STACK:")))
    registers = int(told["REG"])
    return {
        "registers": registers,
        "stack": int(told["STACK"]),
        "shared": kernel.shared,
        "programs": resident(registers, kernel.shared, kernel.warps, capability),
        "instructions": _counted(name for _, name, _ in code),
        "loops": _loops(code),
    }


def _instructions(code: str) -> list[tuple[int, str, str]]:
    """Address, name and operands of each instruction of a disassembly."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", code)
    return [(int(address, 16), name, operands) for address, name, operands in found]


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name in names:
        counts.update(kind for kind, begins in _COUNTED.items() if re.match(begins, name))
    return dict(counts)


def _loops(code: list[tuple[int, str, str]]) -> list[dict[str, int]]:
    """What the innermost loops that multiply matrices are made of: a loop is a branch back."""
    back = [
        (int(target[-1], 16), address)
        for address, name, operands in code
        if name.startswith("BRA") and (target := re.findall(r"0x([0-9a-f]+)", operands))
    ]
    back = [(first, last) for first, last in back if first < last]
    inner = [
        (first, last)
        for first, last in back
        if not any(first <= begin and end <= last and (begin, end) != (first, last) for begin, end in back)
    ]
    found = []
    for first, last in inner:
        names = [name for address, name, _ in code if first <= address <= last]
        counts = _counted(names)
        if counts.get("wgmma") or counts.get("mma"):
            found.append({"all": len(names), **counts})
    return found


def resident(registers: int, shared: int, warps: int, capability: int = 90) -> int:
    """How many programs a multiprocessor holds at a time. Registers come in pieces of 256 a warp."""
    of_all, memory, most_warps, most = LIMITS[capability]
    a_warp = -(-registers * 32 // 256) * 256
    return min(of_all // (a_warp * warps), memory // (shared + _RESERVED), most_warps // warps, most)


@cache
def _cuobjdump() -> str:
    return str(TOOLS / "cuobjdump")


def _tool(*words: str) -> str:
    return subprocess.run([_cuobjdump(), *words], capture_output=True, text=True, check=True).stdout
