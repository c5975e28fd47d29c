"""Encoded samples, kept between commands: ``strop plan`` and ``strop train`` encode the same data once.

    messages, tokenizer, template, limits, Strop's own code ──SHA-256──▶ key ──▶ <folder>/<key>.samples

A key covers everything that decides the tokens, so that nothing is ever out of date: what changes has another key.
The data itself is read each time; only its encoding is spared. A file is, in little-endian numbers,

    digest     32 bytes       BLAKE2b of all that follows, keyed with the file's key
    counts     int64 [3]      records R, tokens T, bytes of the refusals B
    lengths    int32 [R]      tokens of each record; -1: it is refused
    tokens     int32 [T]      of all records, one after another
    learned    uint8 [⌈T/8⌉]  bits, the first in the highest
    refusals   B bytes        JSON: [reason, cure, found] of each refused record

A file whose digest is wrong (cut short, damaged, renamed) counts as none. Files appear whole, under their final name,
and never change. That the folder cannot be read or written is no error: it costs the time of encoding again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers

from strop.data.records import Conversation, Message, Refusal
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import Encoded

SUFFIX = ".samples"
LEAST_CHARACTERS = 1 << 18
"""Less text is encoded faster than it is worth a file: in about 0.2 s."""

MOST_FILES = 20
MOST_BYTES = 2 << 30

_DIGEST = 32
_COUNTS = 3
_STAGING = ".part"
_FORSAKEN_SECONDS = 24 * 60 * 60
"""A staging file this old belongs to nobody who still runs."""


def cache_key(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    max_tokens: int | None,
    overlong: str,
    learn: str = "answers",
) -> str | None:
    """Name everything that decides the tokens of a data set.

    Args:
        tokenizer: the model's tokenizer.
        conversations: what is encoded.
        max_tokens: the longest sample.
        overlong: what happens to longer ones.
        learn: what of a sample is learned.

    Returns:
        SHA-256 in hexadecimal; None where keeping is not worth it, or Strop cannot read its own code.
    """
    characters = sum(len(message.content) for conversation in conversations for message in conversation.messages)
    characters += sum(len(conversation.text or "") for conversation in conversations)
    code = _code()
    if characters < LEAST_CHARACTERS or code is None:
        return None
    # JSON and not the characters' bytes: a data set may hold halves of surrogate pairs, which UTF-8 has no bytes for.
    settings = {
        "python": sys.version,
        "libraries": [jinja2.__version__, tokenizers.__version__],
        "template": [tokenizer.template.source, tokenizer.template.name, tokenizer.template.tokens],
        "tokens": [tokenizer.special_tokens, tokenizer.stop_tokens],
        "limits": [max_tokens, overlong, learn],
    }
    digest = hashlib.sha256()
    for part in (code, tokenizer.backend.to_str().encode(), json.dumps(settings, sort_keys=True).encode("ascii")):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    for conversation in conversations:
        digest.update(json.dumps(_content(conversation)).encode("ascii"))
    return digest.hexdigest()


def read_samples(folder: Path, key: str, conversations: Sequence[Conversation]) -> list[Encoded | Refusal] | None:
    """The samples that were kept under a key, each for its conversation; None where there are none.

    The arrays are read-only.
    """
    file = folder / f"{key}{SUFFIX}"
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if content[:_DIGEST] != _digest(key, [memoryview(content)[_DIGEST:]]):
        return None
    with suppress(OSError):  # what was used last is kept longest
        os.utime(file)
    return _unpack(content, conversations)


def write_samples(folder: Path, key: str, samples: Sequence[Encoded | Refusal]) -> None:
    """Keep samples under a key, and drop what was not used for longest where there is too much.

    Samples with weights are not kept: the file has no place for them.
    """
    if any(isinstance(sample, Encoded) and sample.weights is not None for sample in samples):
        return
    parts = _pack(samples)
    if _DIGEST + sum(map(len, parts)) > MOST_BYTES:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, staging = tempfile.mkstemp(_STAGING, f".{key[:16]}-", folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines([_digest(key, parts), *parts])
            Path(staging).replace(folder / f"{key}{SUFFIX}")
        except OSError:
            Path(staging).unlink(missing_ok=True)
        _drop_oldest(folder)


def _pack(samples: Sequence[Encoded | Refusal]) -> list[bytes]:
    """The parts of a file behind its digest."""
    encoded = [sample for sample in samples if isinstance(sample, Encoded)]
    refusals = [[sample.reason, sample.cure, sample.found] for sample in samples if isinstance(sample, Refusal)]
    lengths = [len(sample.tokens) if isinstance(sample, Encoded) else -1 for sample in samples]
    tokens = np.concatenate([np.empty(0, np.int32), *(sample.tokens for sample in encoded)])
    learned = np.concatenate([np.empty(0, np.bool_), *(sample.learned for sample in encoded)])
    text = json.dumps(refusals).encode("ascii")
    counts = np.array([len(samples), len(tokens), len(text)], "<i8")
    return [
        counts.tobytes(),
        np.array(lengths, "<i4").tobytes(),
        tokens.astype("<i4").tobytes(),
        np.packbits(learned).tobytes(),
        text,
    ]


def _unpack(content: bytes, conversations: Sequence[Conversation]) -> list[Encoded | Refusal]:
    """A file whose digest is right, and so written by `write_samples` for these very conversations."""
    records, count, _ = np.frombuffer(content, "<i8", _COUNTS, _DIGEST).tolist()
    at = _DIGEST + 8 * _COUNTS
    lengths = np.frombuffer(content, "<i4", records, at).tolist()
    tokens = np.frombuffer(content, "<i4", count, at := at + 4 * records).astype(np.int32, copy=False)
    bits = np.frombuffer(content, np.uint8, (count + 7) // 8, at := at + 4 * count)
    learned = np.unpackbits(bits, count=count).view(np.bool_)
    for array in (tokens, learned):
        array.setflags(write=False)
    refusals = iter(json.loads(content[at + len(bits) :]))
    samples: list[Encoded | Refusal] = []
    start = 0
    for conversation, length in zip(conversations, lengths, strict=True):
        if length < 0:
            samples.append(Refusal(conversation.place, *next(refusals)))
        else:
            samples.append(Encoded(tokens[start : start + length], learned[start : start + length]))
            start += length
    return samples


def _content(conversation: Conversation) -> list[Any]:
    """What of a conversation decides its tokens; short for most, which are roles and contents."""
    messages: list[Any] = [
        [message.role, message.content] if message == Message(message.role, message.content) else astuple(message)
        for message in conversation.messages
    ]
    if conversation.tools or conversation.text is not None:
        messages += [conversation.tools, conversation.text]
    return messages


def _digest(key: str, parts: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST, key=bytes.fromhex(key))
    for part in parts:
        digest.update(part)
    return digest.digest()


def _code() -> bytes | None:
    """SHA-256 over the modules of `strop.data`, this one included; None where their source is not there."""
    digest = hashlib.sha256()
    try:
        files = sorted(Path(__file__).parent.glob("*.py"))
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError:
        return None
    return digest.digest() if files else None


def _drop_oldest(folder: Path) -> None:
    """Hold a folder to `MOST_FILES` and `MOST_BYTES`, and take away what broken-off writers left."""
    found: list[tuple[float, int, Path]] = []
    for file in folder.iterdir():
        with suppress(OSError):  # another process may drop it at the same time
            status = file.stat()
            if file.suffix == SUFFIX:
                found.append((status.st_mtime, status.st_size, file))
            elif file.suffix == _STAGING and status.st_mtime < time.time() - _FORSAKEN_SECONDS:
                file.unlink()
    total = 0
    for number, (_, size, file) in enumerate(sorted(found, reverse=True)):
        total += size
        if number >= MOST_FILES or total > MOST_BYTES:
            with suppress(OSError):
                file.unlink()
