"""Files as bytes and lines, compressed or not, with limits that a hostile or broken file cannot pass.

    .jsonl          as it stands
    .jsonl.gz       gzip
    .jsonl.zst      Zstandard; needs the package zstandard (strop[tables])

A line longer than 64 MiB is refused before it is read whole, so that a small file which unpacks to one endless line
costs no memory. So is a compressed file that grows more than 150-fold beyond 64 MiB, and a million blank lines in a
row: they would cost time. Text shrinks to a third or a twentieth, rows made from a pattern to a hundredth.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from strop.errors import DataError

COMPRESSIONS = ("gz", "zst")
"""Endings behind a format's own."""

MOST_LINE_BYTES = 64 << 20
"""The longest line."""

MOST_UNPACKED_BYTES = 1 << 30
"""The largest compressed file that has to be read whole, unpacked."""

MOST_GROWTH = 150
"""How many times its size a compressed file may unpack to; gzip can reach 1,032, Zstandard more."""

FREE_UNPACKED_BYTES = 64 << 20
"""Up to here a file may grow as it likes."""

_UNPACKED_PIECE = 1 << 20
_BLANK = (b"\n", b"\r\n")

MOST_BLANK_LINES = 1_000_000
"""In a row."""

_PIECE = 512
"""Packed bytes that are unpacked at once: Zstandard makes at most 32,768 times as many of them, 16 MiB."""

BOM = b"\xef\xbb\xbf"


@contextmanager
def opened(file: Path, label: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, unpacked.

    Args:
        file: the file.
        label: what messages call it.

    Raises:
        DataError: it cannot be opened or read, or is damaged; also while it is read inside the block.
    """
    try:
        with _stream(file, label) as stream:
            yield stream
    except DataError:
        raise
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _damaged(label, "gzip", str(error)) from error
    except OSError as error:
        raise DataError(
            f"{label} cannot be read", found=error.strerror or str(error), do="check the file and its permissions"
        ) from error


def lines(stream: IO[bytes], label: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream, from 1, each with its end; a byte order mark is no part of the first.

    Lines end in \\n only: U+2028 may stand inside a JSON string.

    Raises:
        DataError: a line is longer than 64 MiB.
    """
    number, blank = 0, 0
    while raw := stream.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(raw) > MOST_LINE_BYTES:
            raise DataError(
                f"{label}:{number} is too long a line",
                expected=f"at most {MOST_LINE_BYTES >> 20} MiB in a line",
                found="more",
                do="check that the file is what its ending says, with one row a line",
            )
        blank = blank + 1 if raw in _BLANK else 0
        if blank > MOST_BLANK_LINES:
            raise DataError(
                f"{label}:{number} is one of very many blank lines",
                expected=f"at most {MOST_BLANK_LINES:,} in a row",
                found="more",
                do="check that the file is what its ending says",
            )
        yield number, raw.removeprefix(BOM) if number == 1 else raw


def whole(file: Path, label: str) -> str:
    """A whole file as text, without a byte order mark.

    Raises:
        DataError: it cannot be read, is no UTF-8, or unpacks to more than 1 GiB.
    """
    packed = file.suffix.lower().removeprefix(".") in COMPRESSIONS
    with opened(file, label) as stream:
        raw = stream.read(MOST_UNPACKED_BYTES + 1) if packed else stream.read()
    if packed and len(raw) > MOST_UNPACKED_BYTES:
        raise DataError(
            f"{label} unpacks to more than {MOST_UNPACKED_BYTES >> 30} GiB",
            expected="a file that can be read whole",
            do="write it as .jsonl, one object a line, which is read line by line",
        )
    return decoded(raw.removeprefix(BOM), label, first_line=1)


def decoded(raw: bytes, label: str, *, first_line: int) -> str:
    """Bytes as text.

    Args:
        raw: the bytes.
        label: what messages call the file.
        first_line: the line that they begin in.

    Raises:
        DataError: they are not UTF-8; with the line, and the encoding that they may be in.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        likely = _likely_encoding(raw, error.start)
        raise DataError(
            f"{label}:{line} is not UTF-8 text",
            expected="UTF-8",
            found=f"the byte 0x{raw[error.start]:02x}" + (f"; it looks like {likely}" if likely else ""),
            do="save the file as UTF-8" + (f": iconv -f {likely} -t UTF-8 OLD > NEW" if likely else ""),
        ) from error


def _stream(file: Path, label: str) -> IO[bytes]:
    ending = file.suffix.lower()
    if ending == ".gz":
        return _bounded(cast(IO[bytes], gzip.open(file, "rb")), file, label)
    if ending == ".zst":
        return _bounded(_zstandard(file, label), file, label)
    return file.open("rb")


def _bounded(stream: IO[bytes], file: Path, label: str) -> IO[bytes]:
    """A stream of unpacked bytes that ends in an error where they are too many for the file."""
    import io

    most = max(FREE_UNPACKED_BYTES, file.stat().st_size * MOST_GROWTH)

    class Reader(io.RawIOBase):
        """Counts what goes through."""

        def __init__(self) -> None:
            self._count = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            piece = stream.read(min(len(buffer), _UNPACKED_PIECE))
            self._count += len(piece)
            if self._count > most:
                raise DataError(
                    f"{label} unpacks to more than {MOST_GROWTH} times its size",
                    expected=f"at most {most >> 20:,} MiB",
                    found="more",
                    do="unpack it, look at it, and give the unpacked file",
                )
            buffer[: len(piece)] = piece
            return len(piece)

        def close(self) -> None:
            stream.close()
            super().close()

    return io.BufferedReader(Reader(), 1 << 20)


def _zstandard(file: Path, label: str) -> IO[bytes]:
    import io

    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{label} cannot be unpacked",
            expected="the package zstandard, which Strop does without unless it is asked for",
            found="a .zst file",
            do="pip install 'strop[tables]', or unpack it: zstd -d FILE",
        ) from None

    class Reader(io.RawIOBase):
        """Frame after frame. zstandard's own reader takes a file that is cut off for one that has ended."""

        def __init__(self) -> None:
            self._file = file.open("rb")
            self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._packed, self._unpacked, self._begun = b"", memoryview(b""), False

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            while not self._unpacked:
                self._packed = self._packed or self._file.read(_PIECE)
                if not self._packed:
                    if self._begun:
                        raise _damaged(label, "Zstandard", "the file ends inside a frame")
                    return 0
                self._more()
            length = min(len(buffer), len(self._unpacked))
            buffer[:length] = self._unpacked[:length]
            self._unpacked = self._unpacked[length:]
            return length

        def _more(self) -> None:
            try:
                self._unpacked = memoryview(self._frame.decompress(self._packed))
            except zstandard.ZstdError as error:
                raise _damaged(label, "Zstandard", str(error)) from error
            self._packed, self._begun = b"", True
            if self._frame.eof:
                self._packed, self._begun = self._frame.unused_data, False
                self._frame = zstandard.ZstdDecompressor().decompressobj()

        def close(self) -> None:
            self._file.close()
            super().close()

    return io.BufferedReader(Reader(), 1 << 20)


def _damaged(label: str, kind: str, found: str) -> DataError:
    return DataError(
        f"{label} cannot be unpacked",
        expected=f"a whole {kind} file",
        found=found,
        do="download or pack it again, or take the ending off if it is not packed",
    )


def _likely_encoding(raw: bytes, at: int) -> str:
    """What bytes that are not UTF-8 may be: a guess for the message only, never acted on."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    around = raw[max(at - 1, 0) : at + 4096]
    for shift in (0, 1):
        try:
            text = around[shift:].decode("gb18030")
        except UnicodeDecodeError as error:
            if error.start < len(around) - 4:
                continue
            text = around[shift : error.start].decode("gb18030", "ignore")
        if sum("\u4e00" <= character <= "\u9fff" for character in text) >= 2:
            return "GB18030"
    return ""
