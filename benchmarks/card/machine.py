"""The device that a benchmark runs on: what it is, what it can do at most, and how its time is taken.

facts(device)    date, card, driver, versions: what every file of results begins with
roof(device)     a large product of matrices and a large copy, measured now: the ceilings that shares are of
Timer(device)    seconds of an operation, by the card's own events; on a CPU by its clock, for a run of the code
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("strop", "torch", "triton", "transformers", "peft", "bitsandbytes", "trl", "liger-kernel", "unsloth")


def facts(device: str) -> dict[str, Any]:
    """What results belong to.

    Raises:
        SystemExit: the device is not there.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; STROP_TEST_DEVICE=cpu make gpu runs the code on the CPU")
    found: dict[str, Any] = {"date": date.today().isoformat(), "device": device, "python": platform.python_version()}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name,
            "card_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver": query("driver_version"),
        }
    else:
        found["card"] = processor()
    found["versions"] = {name: found_version for name in PACKAGES if (found_version := _version(name))}
    return found


def results_folder(root: Path, known: dict[str, Any]) -> Path:
    """The folder of a card's results of a day: `gpu-2026-11-25-nvidia-h200`. A CPU's are none: `cpu-2026-11-25`."""
    if known["device"] == "cpu":
        return root / f"cpu-{known['date']}"
    card = re.sub(r"[^a-z0-9]+", "-", str(known["card"]).lower()).strip("-")
    return root / f"gpu-{known['date']}-{card}"


def query(what: str) -> str:
    """A fact that nvidia-smi tells of the first card, or "" where it is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def bytes_in_use() -> int:
    """Bytes in use on the first card, asked without a context on it; 0 where nothing tells."""
    said = query("memory.used")
    return int(said) << 20 if said.isdecimal() else 0


def processor() -> str:
    """The CPU's name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


class Timer:
    """Seconds of operations on a device.

    Args:
        device: "cpu" or "cuda".
        seconds: how long one operation is repeated.
    """

    def __init__(self, device: str, seconds: float = 0.2) -> None:
        self._on_card, self._seconds = device.startswith("cuda"), seconds

    def median(self, run: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        """The median over repetitions, the first ones left out: they compile and touch memory.

        Args:
            run: the operation.
            before: done before each repetition and not timed: puts back what the operation has overwritten.
        """
        once = self._card if self._on_card else self._clock
        for _ in range(3):
            before()
            once(run)
        found: list[float] = []
        began = time.perf_counter()
        while len(found) < 5 or (time.perf_counter() - began < self._seconds and len(found) < 1000):
            before()
            found.append(once(run))
        return statistics.median(found)

    @staticmethod
    def _card(run: Callable[[], object]) -> float:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    @staticmethod
    def _clock(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


def roof(device: str, *, tiny: bool = False) -> dict[str, float]:
    """What the device does at most, on random numbers: a product of 8,192³ in bfloat16, and a copy of 4 GiB.

    Returns:
        "flops_per_s", and "bytes_per_s", read and written.
    """
    import torch

    timer, side, size = Timer(device), (256 if tiny else 8192), (1 << 24 if tiny else 1 << 32)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = timer.median(lambda: torch.mm(a, b, out=out))
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = timer.median(lambda: target.copy_(source))
    return {"flops_per_s": 2.0 * side**3 / product, "bytes_per_s": 2.0 * size / copy}


def main() -> None:
    """Prints the facts of a device as JSON, its ceilings with them, or the folder that its results of today go to."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("device", nargs="?", default="cuda")
    parser.add_argument("--roof", action="store_true", help="the ceilings too")
    parser.add_argument("--tiny", action="store_true", help="small operations: to test the code")
    parser.add_argument("--results", action="store_true", help="the folder alone")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1] / "results", help="where it lies")
    given = parser.parse_args()
    known = facts(given.device)
    if given.results:
        print(results_folder(given.root, known))
    else:
        print(json.dumps({**known, **(roof(given.device, tiny=given.tiny) if given.roof else {})}))


if __name__ == "__main__":
    main()
