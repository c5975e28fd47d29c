"""Whatever bytes a reader is given, it gives a value or raises an error of Strop's own.

Each reader starts from a file that is right and gets it with pieces cut out, put in or repeated, or a text made of its
format's own marks. 10,000 inputs over all readers on every change, the same each time; `make test-slow` tries a million
new ones (STROP_FUZZ sets how many), in parts that can be run one by one: `-k "million and part-07"` is a twentieth of
each reader's inputs. What is tried follows from STROP_FUZZ_SEED, reader and part; the seed is printed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_gguf

from strop.data.conversations import RowReader
from strop.data.records import Message
from strop.data.sources import read_records
from strop.data.template import ChatTemplate
from strop.data.tokenizer import Tokenizer
from strop.errors import StropError
from strop.model.families import read_spec
from strop.model.gguf_reader import GGUFModel
from strop.model.lora import read_adapter
from strop.model.tensors import ModelTensors
from strop.recipe import from_yaml
from strop.recipe.tree import decode
from strop.run.checkpoint import verify
from strop.run.folder import RunFolder
from strop.run.report import write_report
from strop.run.summary import summarize
from tiny_run import Tiny
from tiny_tokenizers import CHATML, LLAMA2

Read = Callable[[Path, bytes], None]

BATCH = 10
"""Inputs that follow from one number that hypothesis draws: drawing each takes five times what reading it does."""

JSON_MARKS = (
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"null", b"true", b"-", b"1e999", b"9" * 5000, b"NaN", b"0.1"),
    *(
        b"\\ud800",
        b"\\u0000",
        b"\x00",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b"[" * 2000,
        b'{"a":' * 400,
    ),
    *(b"18446744073709551616", b"-1", b'"messages"', b'"role"', b'"content"', b'"shape"', b'"data_offsets"', b'"F32"'),
)
YAML_MARKS = (
    *(
        b"- ",
        b": ",
        b"\n",
        b"  ",
        b"\t",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a ",
        b"*a",
        b"<<",
        b"!!python/name:os.system ",
        b"!x ",
    ),
    *(
        b"|",
        b">",
        b"'",
        b'"',
        b"\\U",
        b"\\x",
        b"#",
        b"---\n",
        b"...\n",
        b"? ",
        b"%YAML 9.9\n",
        b"\xff",
        b"\x00",
        b"\xe2\x80\xa8",
    ),
    *(b"train", b"data", b"model", b"lr", b"[" * 300, b"null", b"1_0", b"0x10", b".inf", b"9" * 400, b"@", b"`"),
)
TEMPLATE_MARKS = (
    *(
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"{#",
        b"#}",
        b" for ",
        b" in ",
        b" if ",
        b" endif ",
        b" endfor ",
        b" set ",
        b" macro ",
    ),
    *(
        b"messages",
        b"loop",
        b"namespace",
        b"range(99999)",
        b"10**9",
        b" * ",
        b" ** ",
        b" ~ ",
        b" % ",
        b" | ",
        b"tojson",
    ),
    *(
        b"join",
        b"map",
        b"replace",
        b"indent",
        b"sort",
        b".__class__",
        b"[0]",
        b"['role']",
        b".content",
        b"(",
        b")",
        b"'",
        b"\\",
    ),
    *(
        b"raise_exception",
        b" recursive ",
        b"\x00",
        b"\xff",
        b"9" * 500,
        b"[",
        b"]",
        b"none",
        b" is ",
        b" endset ",
        b"caller()",
    ),
)
BINARY_MARKS = (
    *(
        struct.pack("<Q", number)
        for number in (0, 1, 2, 1 << 16, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
    ),
    *(struct.pack("<I", kind) for kind in (0, 1, 4, 8, 9, 12, 13, 0xFFFFFFFF)),
    *(b"\x00", b"\xff", b"GGUF", b"general.alignment", b"tokenizer.ggml.tokens", b"llama.block_count"),
)


def mutated(chance: Random, seeds: list[bytes], marks: tuple[bytes, ...]) -> bytes:
    """A right file with one to six pieces replaced, or, one time in four, a text of marks."""
    if chance.random() < 0.25:
        return b"".join(chance.choices(marks, k=chance.randrange(24)))
    content = chance.choice(seeds)
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(content))
        piece = chance.choice(marks) if chance.random() < 0.5 else chance.randbytes(chance.randrange(5))
        content = content[:at] + piece + content[at + chance.randrange(25) :]
    return content


# ── readers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(name: str) -> Read:
    def read(folder: Path, content: bytes) -> None:
        file = folder / name
        file.write_bytes(content)
        reader = RowReader()
        for record in read_records(file):
            reader.read(record)

    return read


def recipe(folder: Path, content: bytes) -> None:
    from_yaml(decode(content, "recipe.yaml"), "recipe.yaml")


TURNS = [Message("system", "s"), Message("user", "question?"), Message("assistant", "<think>a</think> answer")]


def template(folder: Path, content: bytes) -> None:
    text = content.decode("utf-8", errors="surrogateescape")
    ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"}).render(TURNS, add_generation_prompt=True)


def file_of_model(name: str, open_model: Callable[[Path], Any]) -> Read:
    def read(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        open_model(folder)

    return read


def tokenize(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.decode(tokenizer.encode("What is <|im_end|> 3 + 8?", special=False))


def weights(folder: Path) -> None:
    ModelTensors(folder)


def gguf(folder: Path, content: bytes) -> None:
    (folder / "x.gguf").write_bytes(content)
    GGUFModel(folder / "x.gguf")


def checkpoint(folder: Path, content: bytes) -> None:
    (folder / "step-000002").mkdir(exist_ok=True)
    (folder / "step-000002" / "manifest.json").write_bytes(content)
    verify(folder / "step-000002")


def run_files(folder: Path, content: bytes) -> None:
    for name in ("events.jsonl", "manifest.json", "recipe.yaml"):
        (folder / name).write_bytes(content)
    run = RunFolder(folder)
    try:
        summarize(run)
        run.fact("manifest.json", "model", "sha256")
    except StropError:
        pass
    write_report(folder)


def adapter(folder: Path, content: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    read_adapter(folder, read_spec(folder))


ROWS = [
    b'{"question": "What is 3 + 8?", "answer": "It is 11."}\n{"question": "b", "answer": "c", "weight": 0.5}\n',
    b'{"messages": [{"role": "user", "content": "a"}, '
    b'{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}\n',
    b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"}\n',
]
CHECKPOINT = {"schema": 1, "step": 2, "files": {"a": {"bytes": 3, "sha256": "0" * 64}}}
EVENTS = b'{"kind":"start","step":0,"steps":5}\n{"kind":"step","step":1,"loss":1.5,"tokens":4,"seconds":0.1}\n' * 2
RECIPE = b"model: m  # a\ndata:\n  train: [a.jsonl, 'b.jsonl*2']\n  eval: 0.1\ntrain: {lr: 1e-4, steps: 7}\n"
INDEX = b'{"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "a.safetensors", "b": "b.safetensors"}}'
SAFETENSORS = struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'.ljust(64) + bytes(16)
ADAPTER = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}'

# Reader, its right inputs ("" for that of the tiny model), the marks of its format, and its share of all inputs.
READERS: dict[str, tuple[Read, list[bytes] | str, tuple[bytes, ...], float]] = {
    "jsonl": (rows("x.jsonl"), ROWS, JSON_MARKS, 0.16),
    "json": (rows("x.json"), [b"[" + ROWS[1].strip() + b"]", b'{"data": [' + ROWS[2].strip() + b"]}"], JSON_MARKS, 0.1),
    "csv": (rows("x.csv"), [b'question,answer\na,"b\n""c"""\nd,e\n'], (*JSON_MARKS, b'""', b",,"), 0.159),
    "recipe": (recipe, [RECIPE], YAML_MARKS, 0.06),
    "template": (template, [CHATML.encode(), LLAMA2.encode()], TEMPLATE_MARKS, 0.08),
    "tokenizer": (file_of_model("tokenizer.json", tokenize), "tokenizer.json", JSON_MARKS, 0.04),
    "tokenizer config": (
        file_of_model("tokenizer_config.json", tokenize),
        [b'{"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}, "chat_template": [{"name": "default"}]}'],
        JSON_MARKS,
        0.04,
    ),
    "config": (file_of_model("config.json", weights), "config.json", JSON_MARKS, 0.08),
    "safetensors": (file_of_model("model.safetensors", weights), [SAFETENSORS], (*JSON_MARKS, *BINARY_MARKS), 0.08),
    "index": (file_of_model("model.safetensors.index.json", weights), [INDEX], JSON_MARKS, 0.06),
    "gguf": (gguf, "gguf", BINARY_MARKS, 0.04),
    "checkpoint": (checkpoint, [json.dumps(CHECKPOINT).encode()], JSON_MARKS, 0.06),
    "run": (run_files, [EVENTS], JSON_MARKS, 0.011),
    "adapter": (adapter, [ADAPTER], JSON_MARKS, 0.03),
}


def test_the_shares_are_all():
    assert sum(share for *_, share in READERS.values()) == pytest.approx(1)


@pytest.fixture
def place(tiny: Tiny, memory_path: Path) -> Path:
    """A folder of a good model."""
    import shutil

    shutil.copytree(tiny.model, memory_path / "model")
    return memory_path / "model"


def fuzz(name: str, place: Path, inputs: int, part: str = "") -> int:
    """Tries a reader's share of so many inputs: always the same, or those of a named part."""
    read, seeds, marks, share = READERS[name]
    if name == "gguf":
        seeds = [write_tiny_gguf(place / "right.gguf").read_bytes()]
    elif isinstance(seeds, str):
        seeds = [(place / seeds).read_bytes()]
    if name == "index":
        (place / "model.safetensors").unlink()
    if name == "adapter":
        (place / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    tried = 0

    def try_some(number: int) -> None:
        nonlocal tried
        chance = Random(number)
        for _ in range(BATCH):
            content = mutated(chance, seeds, marks)
            tried += 1
            try:
                read(place, content)
            except StropError as error:
                assert error.what
                assert error.exit_code in (2, 3)
            except BaseException:
                note(f"content={content!r}")
                raise

    settled = settings(
        max_examples=round(inputs * share / BATCH),
        derandomize=not part,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    trial = settled(given(st.integers(0, 2**64 - 1))(try_some))
    (seed(f"{name} {part}")(trial) if part else trial)()
    return tried


NAMES = list(READERS)
PARTS = [f"part-{number:02}" for number in range(20)]


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_inputs(name: str, place: Path):
    assert fuzz(name, place, 10_000) >= 110


@pytest.fixture(scope="session")
def fuzz_seed() -> str:
    return os.environ.get("STROP_FUZZ_SEED") or str(SystemRandom().randrange(10**9))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_a_million_inputs(part: str, name: str, place: Path, fuzz_seed: str):
    inputs = int(os.environ.get("STROP_FUZZ", "1000000")) // len(PARTS)
    tried = fuzz(name, place, inputs, f"{part} {fuzz_seed}")
    print(f"FUZZ {name}: {tried:,} inputs, STROP_FUZZ_SEED={fuzz_seed}")
    assert tried >= round(inputs * READERS[name][3] / BATCH) * BATCH
