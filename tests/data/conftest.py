"""Tokenizers that the tests of `strop.data` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from strop.data.tokenizer import Tokenizer
from tiny_tokenizers import write_folder

# A busy machine is no fault.
hypothesis.settings.register_profile("strop", deadline=None)
hypothesis.settings.load_profile("strop")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model folder of a kind in `tiny_tokenizers.KINDS`, written once."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        path = root / kind
        return path if path.exists() else write_folder(path, kind)

    return folder


@pytest.fixture(scope="session")
def tokenizer_of(folder_of: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    """The tokenizer of such a folder, read once."""
    known: dict[str, Tokenizer] = {}

    def tokenizer(kind: str) -> Tokenizer:
        if kind not in known:
            known[kind] = Tokenizer.from_folder(folder_of(kind))
        return known[kind]

    return tokenizer


@pytest.fixture(scope="session")
def chatml(tokenizer_of: Callable[[str], Tokenizer]) -> Tokenizer:
    """A byte-level tokenizer with a ChatML template."""
    return tokenizer_of("chatml")
