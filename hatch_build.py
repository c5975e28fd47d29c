"""Compiles the native library `_native` when Strop is installed; `python hatch_build.py` does so by hand.

    src/strop/kernels/native/*.c ──any C compiler──▶ src/strop/kernels/native/_native.so (.dylib, .dll)

The library holds the operations of `strop.kernels` for CPUs. It is plain C11 and knows neither Python nor torch, so
one wheel serves every Python of a platform. Files in `PER_ISA` are compiled once for each instruction set; which one
runs is chosen when the library is loaded. What is written for AMX is left empty by compilers that do not know it. Where
there is no compiler, or it fails, Strop is installed without the library and computes with torch: this file warns and
never breaks an installation.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, where hatchling need not be installed
    BuildHookInterface = object

SOURCES = Path(__file__).parent / "src" / "strop" / "kernels" / "native"
# Compiled once for each dtype of what they read and write.
PER_DTYPE = {
    "vector.c": ("float32", "bfloat16"),
    "layer_norm.c": ("bfloat16",),
    "activation.c": ("bfloat16",),
}
PER_ISA = ("attention_product.c", "attention_rows.c", "nf4.c", *PER_DTYPE)
# Products of matrices are a library's elsewhere, and no two of them agree: here fused multiply-adds are welcome.
FUSED = ("attention_product.c",)
# Compiled with flags of their own, where the compiler takes them (gcc from 11 on, clang from 12 on), for Linux.
AMX = ("attention_amx.c", "attention_amx_backward.c", "matmul_amx.c")

# No -ffast-math and no contraction to fused multiply-adds: every instruction set gives the same bytes.
FLAGS = (
    "-std=c11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-psabi",
)
_ISAS = {
    "x86_64": {
        "plain": (),
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "avx512": (
            *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
            "-mprefer-vector-width=512",
        ),
    },
    "aarch64": {"plain": (), "neon": ()},
}
_AMX_FLAGS = ("-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mprfchw")
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
# Apple silicon began with macOS 11, whatever an older Python says that it was built for.
_FIRST_MACOS_ARM = (11, 0)


class CompileError(Exception):
    """There is no compiler that makes the library; says why."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]
    """What hatchling calls before it packs a wheel, editable ones too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles the library into the source tree and names the platform in the wheel's tag."""
        del version
        try:
            compile_library()
        except (CompileError, OSError) as error:
            # One from an earlier build would be packed into a wheel that says it fits everywhere.
            library_path().unlink(missing_ok=True)
            self.app.display_warning(f"strop: installed without its native library; torch computes instead. {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def library_path() -> Path:
    """Where the library lies: beside its sources, where `strop.kernels.library` looks for it."""
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    return SOURCES / f"_native{suffix}"


def compile_library() -> Path:
    """Compiles all sources with the first compiler that works.

    Returns:
        The library's path.

    Raises:
        CompileError: no compiler was found, or none succeeded; a library from an earlier build stays.
    """
    failures = []
    for compiler in _compilers():
        # In a folder of its own and then moved, so that a process that has the old library open keeps it whole.
        with tempfile.TemporaryDirectory(dir=SOURCES.parent, prefix=".native-") as folder:
            try:
                library = _compile(compiler, Path(folder))
            except (OSError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", None) or str(error)
                failures.append(f"{shlex.join(compiler)}: {said.strip()[-2000:]}")
                continue
            return library.replace(library_path())
    raise CompileError("\n".join(failures) or "No C compiler was found ($CC, cc, gcc, clang).")


def _compilers() -> list[list[str]]:
    """Commands to try, in order; $CC alone where it is set, for it is a choice."""
    if os.environ.get("CC"):
        return [shlex.split(os.environ["CC"])]
    # On Windows (compiled for it, not yet run there) gcc or clang have to be installed: the sources use their
    # builtins, which MSVC has not.
    configured = shlex.split(sysconfig.get_config_var("CC") or "")[:1]
    found = {shutil.which(name): [name] for name in (*configured, "cc", "gcc", "clang")}
    return [command for path, command in found.items() if path]


def _compile(compiler: list[str], folder: Path) -> Path:
    """Objects and library in ``folder``."""
    isas = _ISAS.get(_machine(), {"plain": ()})
    common = [*compiler, *FLAGS, *_platform_flags()]
    jobs = []
    for source in sorted(SOURCES.glob("*.c")):
        versions = product(isas if source.name in PER_ISA else [""], PER_DTYPE.get(source.name, [""]))
        for isa, dtype in versions:
            target = folder / f"{source.stem}{isa}{dtype}.o"
            flags = [*isas.get(isa, ()), *(["-ffp-contract=fast"] if source.name in FUSED else [])]
            jobs.append([*common, *flags, *_named(ISA=isa, NUMBER=dtype), "-c", str(source), "-o", str(target)])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(_compile_one, jobs):
            pass
    library = folder / library_path().name
    _run([*common, "-shared", *(job[-1] for job in jobs), "-o", str(library), *([] if os.name == "nt" else ["-lm"])])
    return library


def _named(**names: str) -> list[str]:
    """ISA=avx2 as -DISA=avx2 -DISA_AVX2=1: the name of what is compiled, and what the source asks for."""
    return [
        flag for key, value in names.items() if value for flag in (f"-D{key}={value}", f"-D{key}_{value.upper()}=1")
    ]


def _compile_one(command: list[str]) -> None:
    """One object; with the flags of AMX where they are of use and the compiler takes them."""
    if Path(command[-3]).name in AMX and sys.platform == "linux" and _machine() == "x86_64":
        try:
            return _run([*command[:-4], *_ISAS["x86_64"]["avx512"], *_AMX_FLAGS, *command[-4:]])
        except subprocess.CalledProcessError:
            pass  # tried once more without them: what is wrong with the file itself shows there
    return _run(command)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")


def _machine() -> str:
    # A 32-bit Python on a 64-bit machine cannot load what is compiled for the machine.
    machine = platform.machine().lower()
    return _MACHINES.get(machine, machine) if sys.maxsize > 2**32 else "unknown"


def _platform_flags() -> list[str]:
    if sys.platform == "win32":
        return ["-static-libgcc"]
    flags = ["-fPIC", "-pthread"]
    if sys.platform == "darwin":
        major, minor = _macos()
        flags += ["-arch", platform.machine(), f"-mmacosx-version-min={major}.{minor}"]
    return flags


def _macos() -> tuple[int, int]:
    """The oldest macOS that the library is made for: that of the Python that builds it."""
    version = sysconfig.get_platform().split("-")[1].split(".")
    oldest = (int(version[0]), int(version[1]) if len(version) > 1 else 0)
    return max(oldest, _FIRST_MACOS_ARM) if platform.machine() == "arm64" else oldest


def _platform_tag() -> str:
    if sys.platform == "darwin":
        major, minor = _macos()
        return f"macosx_{major}_{minor}_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    print(compile_library())
