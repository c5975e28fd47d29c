"""``strop doctor``: versions, device, cores, memory and cache of this machine."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from strop.cli.app import verb

PACKAGES: Final = ("strop", "torch", "tokenizers", "safetensors", "gguf", "numpy", "pydantic", "triton", "transformers")


def doctor(model: str | None = None, /, *, json: bool = False) -> int:
    """Say what Strop finds on this machine, and what is missing.

    With a model, says as well what would compute it: Strop's own decoder, or the slower general path over
    transformers. Ends with exit code 0 when training can work here and 1 when something is missing.

    Args:
        model: a model folder, a .gguf file, or an id on a hub.
        json: print the findings as one JSON object.

    Examples:
        strop doctor
        strop doctor ./my-model
        strop doctor --json
    """
    from strop.cli.console import error_console, output_console, print_json
    from strop.cli.show import show_facts

    findings = examine()
    if model is not None and findings["device"]["kind"] != "none":
        findings["model"] = _model(model)
    if json:
        print_json(findings)
    else:
        console = output_console()
        for title in ("versions", "machine", "device", "kernels", "cache", "model"):
            if title not in findings:
                continue
            show_facts(title, readable(findings[title]), console)
            console.print()
        for problem in findings["problems"]:
            error_console().print(f"missing: {problem}", soft_wrap=True)
        if not findings["problems"]:
            console.print("Everything that training needs is here.")
    return 1 if findings["problems"] else 0


def examine() -> dict[str, Any]:
    """Look at this machine.

    Returns:
        ``versions`` (by package; None when not installed), ``machine`` (system, cores, memory in bytes), ``device``
        (kind, name, memory in bytes, threads; ``unused``: why a GPU is not), ``kernels`` (what computes), ``cache``
        (folder, writable, free bytes) and ``problems``: what keeps Strop from training here, one sentence each.
    """
    problems: list[str] = []
    findings: dict[str, Any] = {
        "versions": _versions(),
        "machine": _machine(),
        "device": _device(problems),
        "kernels": {},
        "cache": _cache(problems),
    }
    if findings["device"]["kind"] != "none":
        findings["kernels"] = _kernels(findings["device"]["kind"])
    return {**findings, "problems": problems}


def readable(facts: dict[str, Any]) -> dict[str, Any]:
    """The same facts with sizes in words: ``{"memory_bytes": 16_800_000_000}`` → ``{"memory": "16.8 GB"}``."""
    from strop.cli.units import format_size

    words: dict[str, Any] = {}
    for name, value in facts.items():
        if name.endswith("_bytes"):
            words[name.removesuffix("_bytes").replace("_", " ")] = format_size(value)
        elif isinstance(value, bool):
            words[name.replace("_", " ")] = "yes" if value else "no"
        else:
            words[name.replace("_", " ")] = value
    return words


def _model(model: str) -> dict[str, Any]:
    """What computes a model; ends in its error where nothing does."""
    from strop.cli.console import note
    from strop.model.paths import path_of
    from strop.model.source import model_folder

    folder = model_folder(model, note)
    return {"folder": str(folder), **path_of(folder)}


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable,
        "memory_bytes": memory.total,
        "free_memory_bytes": memory.available,
    }


def _device(problems: list[str]) -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch does not load
        problems.append(f"torch does not import ({' '.join(str(error).split())[:200]}): install it again")
        return {"kind": "none"}
    device: dict[str, Any] = {"kind": "cpu", "name": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info(0)
        device = {
            "kind": "cuda",
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "bfloat16": torch.cuda.is_bf16_supported(),
            "memory_bytes": total,
            "free_memory_bytes": free,
            "cuda": str(torch.version.cuda),
        }
    elif _has_nvidia_driver():
        device["unused"] = f"an NVIDIA driver is here, but torch {torch.__version__} {_why_no_gpu()}"
    elif torch.backends.mps.is_available():
        device = {"kind": "mps", "name": platform.machine()}
    return {**device, "cpu_threads": torch.get_num_threads()}


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def _why_no_gpu() -> str:
    """Why torch sees no GPU where there is a driver."""
    import torch

    if torch.version.cuda is None:
        return "was built for CPUs: install one for CUDA"
    return f"(CUDA {torch.version.cuda}) finds no device that it can use: the driver may be too old, or devices hidden"


def _kernels(kind: str) -> dict[str, str]:
    """What computes: a CPU's operations, float32 matrix products and dtype; a GPU's operations and attention."""
    from strop.kernels import blas, select

    on_cpu = {"operations": select.describe(), "matrix_products": blas.describe(), "cpu_dtype": _dtype()}
    if kind != "cuda":
        return on_cpu
    import torch

    from strop.kernels import attention_choice

    device = torch.device("cuda")
    implementations = ", ".join(attention_choice.available(device))
    return {"gpu_operations": select.describe(device), "gpu_attention": implementations, **on_cpu}


def _dtype() -> str:
    """What a CPU's runs compute in, and the rates of products of a small model that say so."""
    from strop.plan import precision
    from strop.run.figures import significant

    speeds = precision.compare([(576, 1536)])
    if speeds is None:
        return "float32 (bfloat16 needs the native library)"
    rates = {"float32": speeds.float32, "bfloat16": speeds.bfloat16}
    words = ", ".join(f"{name} {significant(rate / 1e9, 3)} GFLOP/s" for name, rate in rates.items())
    return f"{precision.taken(speeds)}, as a rule: products of {words}"


def _cache(problems: list[str]) -> dict[str, Any]:
    import shutil

    from strop.hub.hashes import cache_folder
    from strop.model.nf4_space import most_bytes, taken_bytes

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"strop")
        writable = True
    except OSError as error:
        writable = False
        problems.append(
            f"the cache {folder} cannot be written ({error.strerror}): set STROP_CACHE to a folder that can"
        )
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path(folder.anchor or "."))
    return {
        "folder": str(folder),
        "writable": writable,
        "free_bytes": shutil.disk_usage(existing).free,
        "kept_bases_bytes": taken_bytes(),
        "kept_bases_limit_bytes": most_bytes(),
    }


app = verb(doctor)
