"""Files that mean harm, each made on the spot: a name, what writes it into a folder, and what a user would then do.

`CASES` is the list. Every case must end in a `StropError`; none may touch the canary, which is a file that the payloads
make (`touch`), or connect to anything.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYMLINKS = os.name != "nt"
Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A hostile file: `make` writes it into a good model folder (or an empty one), `use` is what opens it."""

    name: str
    use: str
    make: Make


CASES: list[Case] = []


def case(name: str, use: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CASES.append(Case(name, use, make))
        return make

    return add


def add(name: str, use: str, make: Make) -> None:
    CASES.append(Case(name, use, make))


# ── what opens them ──────────────────────────────────────────────────────────────────────────────────────────────────


def open_model(folder: Path) -> None:
    """As `strop train` and `strop chat` do before anything is loaded, and one conversation; then the weights."""
    from strop.data.records import Message
    from strop.data.tokenizer import Tokenizer
    from strop.model.load import load_decoder
    from strop.model.tensors import ModelTensors

    ModelTensors(folder)
    tokenizer = Tokenizer.from_folder(folder)
    text = tokenizer.template.render([Message("user", "a" * 40 + "!")], add_generation_prompt=True)
    tokenizer.encode(text, special=True)
    tokenizer.encode("a" * 4000 + "!", special=False)
    load_decoder(folder)


def open_gguf(folder: Path) -> None:
    from strop.model.gguf_reader import GGUFModel

    GGUFModel(folder / "hostile.gguf")


def open_data(folder: Path) -> None:
    """Rows, and what they mean."""
    from strop.data.conversations import RowReader
    from strop.data.sources import read_records

    (file,) = [path for path in folder.iterdir() if path.name.startswith("hostile.")]
    reader = RowReader()
    for record in read_records(file):
        reader.read(record)


def open_recipe(folder: Path) -> None:
    from strop.recipe import resolve

    resolve(folder / "hostile.yaml", model="m", data="d")


def open_run(folder: Path) -> None:
    """`strop resume`, `strop chat` and `strop runs` of a stranger's folder; the report must be made all the same."""
    from strop.errors import StropError
    from strop.evaluate.tuned import load_tuned
    from strop.run.report import write_report
    from strop.run.summary import runs_in
    from strop.training.session import resume_run

    runs_in(folder.parent)
    write_report(folder)
    try:
        resume_run(folder)
    except StropError:
        load_tuned(folder)


def open_adapter(folder: Path) -> None:
    from strop.model.families import read_spec
    from strop.model.lora import read_adapter

    read_adapter(folder / "adapter", read_spec(folder))


USES: dict[str, Callable[[Path], None]] = {
    "model": open_model,
    "gguf": open_gguf,
    "data": open_data,
    "recipe": open_recipe,
    "run": open_run,
    "adapter": open_adapter,
}


# ── pickles and code by name ─────────────────────────────────────────────────────────────────────────────────────────


class Touch:
    """Unpickling it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['STROP_CANARY']}",)


def config(**changes: Any) -> Make:
    def make(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def text(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


@case("a pickle instead of safetensors", "model")
def _(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch()))


@case("a pickle called safetensors", "model")
def _(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Touch()))


@case("a torch archive called safetensors", "model")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touch()))


@case("a pickle called adapter", "adapter")
def _(folder: Path) -> None:
    good_adapter(folder)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(pickle.dumps(Touch()))


add("auto_map of an unknown family", "model", config(model_type="evil", auto_map={"AutoConfig": "evil.Config"}))
add("_target_", "model", config(_target_="os.system"))
add("_target_ as the family", "model", config(model_type={"_target_": "os.system", "command": "touch canary"}))
add("_component_", "model", config(_component_="os.path.join"))
add("CVE-2026-4372", "model", config(_attn_implementation_internal="evil/kernels:attention"))
add("an activation by dotted path", "model", config(hidden_act="os.system"))
add("quantisation by another library", "model", config(quantization_config={"quant_method": "evil"}))

# ── configs ──────────────────────────────────────────────────────────────────────────────────────────────────────────

add("config nested 100,000 deep", "model", text("config.json", "[" * 100_000))
add("config nested 5,000 deep, closed", "model", config(x=json.loads("[" * 900 + "]" * 900)))
add("2^40 layers", "model", config(num_hidden_layers=1 << 40))
add("2^31 - 1 layers", "model", config(num_hidden_layers=(1 << 31) - 1))
add("negative heads", "model", config(num_attention_heads=-4))
add("a vocabulary of 2^31 - 1", "model", config(vocab_size=(1 << 31) - 1))
add("a number of 100,000 digits", "model", text("config.json", '{"hidden_size": ' + "9" * 100_000 + "}"))
add("a number beyond every float", "model", config(rms_norm_eps=10**400))
add("rope as a text", "model", config(rope_parameters="evil"))
add("config is a list", "model", text("config.json", "[]"))
add("config with NUL", "model", text("config.json", "\0" * 100))
add("config that is no UTF-8", "model", text("config.json", b'{"model_type": "\xff\xfe"}'))
add("config of 20 MB", "model", text("config.json", '{"x": "' + "y" * (20 << 20) + '"}'))


def link(name: str, target: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        for file in ("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"):
            source = folder / file
            if source.is_file():
                (outside / file).write_bytes(source.read_bytes())
        (outside / "secret").write_text("secret")
        (folder / name).symlink_to(target if target.startswith("/") else outside / target)

    return make


def moved_out(name: str) -> Make:
    """The right content, behind a link that leads out of the folder."""

    def make(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        (folder / name).rename(outside / name)
        (folder / name).symlink_to(outside / name)

    return make


@case("config is a pipe", "model")
def _(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


if SYMLINKS:
    add("config is an endless device", "model", link("config.json", "/dev/zero"))
    for _name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        add(f"{_name} leads out of the folder", "model", moved_out(_name))
    add("the template is a file of the system", "model", link("chat_template.jinja", "/etc/hostname"))

# ── safetensors ──────────────────────────────────────────────────────────────────────────────────────────────────────


def safetensors(header: bytes | dict[str, Any], body: bytes = b"", length: int | None = None) -> Make:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return text("model.safetensors", struct.pack("<Q", len(raw) if length is None else length) + raw + body)


def tensor(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


add("header of 2^63 bytes", "model", safetensors(b"{}", length=1 << 63))
add("header of 90 MB", "model", safetensors(b"{}", length=90 << 20))
add("header that is no JSON", "model", safetensors(b"<html>" * 9))
add("header nested 50,000 deep", "model", safetensors(b'{"a":' * 50_000))
add("header with NUL", "model", safetensors(b"\0" * 64))
add("overlapping offsets", "model", safetensors({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)))
add("a hole between tensors", "model", safetensors({"a": tensor([4], 0, 16), "b": tensor([4], 32, 48)}, bytes(48)))
add("offsets beyond the end", "model", safetensors({"a": tensor([1 << 20], 0, 4 << 20)}, bytes(16)))
add("offsets that run backwards", "model", safetensors({"a": tensor([4], 16, 0)}, bytes(16)))
add("a shape of 2^63", "model", safetensors({"a": tensor([1 << 63], 0, 16)}, bytes(16)))
add("a shape that overflows to 0", "model", safetensors({"a": tensor([1 << 32, 1 << 32], 0, 0)}))
add("a negative shape", "model", safetensors({"a": tensor([-4], 0, 16)}, bytes(16)))
add("an unknown dtype", "model", safetensors({"a": tensor([4], 0, 16, "EVIL")}, bytes(16)))
add("one name twice", "model", safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(tensor([4], 0, 16)).encode(),) * 2)))
add("a million empty tensors", "model", safetensors({f"t{n}": tensor([0], 0, 0) for n in range(100_000)}))


@case("weights of NaN", "model")
def _(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start:] = struct.pack("<f", float("nan")) * ((len(raw) - start) // 4)
    path.write_bytes(raw)


def index(value: Any) -> Make:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
        raw = value if isinstance(value, str) else json.dumps(value)
        (folder / "model.safetensors.index.json").write_text(raw)

    return make


add("a shard in ../", "model", index({"weight_map": {"a": "../elsewhere.safetensors"}}))
add("a shard by absolute path", "model", index({"weight_map": {"a": "/etc/passwd"}}))
add("a shard of Windows' kind", "model", index({"weight_map": {"a": "..\\elsewhere.safetensors"}}))
add("a shard with NUL", "model", index({"weight_map": {"a": "x\0.safetensors"}}))
add("a shard of a name that no file can have", "model", index({"weight_map": {"a": "x" * 300}}))
add("a shard that is a number", "model", index({"weight_map": {"a": 5}}))
add("a shard that is a list", "model", index({"weight_map": {"a": [["x"]]}}))
add("an index nested deep", "model", index("[" * 100_000))
add("an index without a map", "model", index({"weight_map": None}))

if SYMLINKS:

    @case("a shard that leads out of the folder", "model")
    def _(folder: Path) -> None:
        index({"weight_map": {"a": "shard.safetensors"}})(folder)
        (folder / "shard.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


# ── tokenizers ───────────────────────────────────────────────────────────────────────────────────────────────────────

for _file in ("tokenizer_config.json", "special_tokens_map.json"):
    add(f"half a surrogate pair in {_file}", "model", text(_file, '{"eos_token": "\\ud800<|im_end|>"}'))


def tokenizer(change: Callable[[dict[str, Any]], None]) -> Make:
    def make(folder: Path) -> None:
        path = folder / "tokenizer.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return make


add("tokenizer nested deep", "model", text("tokenizer.json", "[" * 100_000))
add("tokenizer of 65 MB", "model", lambda folder: os.truncate(folder / "tokenizer.json", 65 << 20))
add("a vocabulary with ids beyond 2^32", "model", tokenizer(lambda t: t["model"]["vocab"].update(evil=1 << 40)))
add("a vocabulary with negative ids", "model", tokenizer(lambda t: t["model"]["vocab"].update(evil=-1)))
add("merges of no token", "model", tokenizer(lambda t: t["model"].update(merges=[["not", "there"]])))
add("a model of no kind", "model", tokenizer(lambda t: t["model"].update(type="Evil")))
add("a decoder of no kind", "model", tokenizer(lambda t: t.update(decoder={"type": "Evil"})))
add(
    "an expression that is none",
    "model",
    tokenizer(
        lambda t: t.update(pre_tokenizer=split("(((")),
    ),
)
add("an expression without end", "model", tokenizer(lambda t: t.update(pre_tokenizer=split("^(((a+)+)+)+$"))))


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────

_GROW = "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = "
TEMPLATES = {
    "a text times a milliard": "{{ 'a' * 10**9 }}",
    "a list times a milliard": "{{ [0] * 10**9 }}",
    "a power of powers": "{{ 9**(9**9) }}",
    "a range of a milliard": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "a text that doubles": _GROW + "ns.s ~ ns.s %}{% endfor %}",
    "a list that holds itself twice": _GROW + "[ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "a dict that holds itself twice": _GROW + "dict(a=ns.s, b=ns.s) %}{% endfor %}{{ ns.s | tojson }}",
    "namespaces in namespaces": _GROW + "namespace(a=ns.s, b=ns.s) %}{% endfor %}{{ ns.s }}",
    "a replacement of nothing": _GROW + "ns.s | replace('', ns.s) %}{% endfor %}",
    "a join of itself": _GROW + "ns.s.join(ns.s) %}{% endfor %}",
    "a number that squares": _GROW.replace("'xxxxxxxx'", "7") + "ns.s * ns.s %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{{ f(n-1) }}{{ f(n-1) }}{% endmacro %}{{ f(90) }}",
    "a width of a milliard": "{{ '{:1000000000}'.format(1) }}",
    "a width that is computed": "{{ '%*d' % (10**9, 1) }}",
    "an indent of a milliard": "{{ [1] | tojson(indent=10**9) }}",
    "bytes of a number": "{{ (5).to_bytes(10**9, 'big') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__()[0]() }}",
    "globals of a function": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "attributes through a format": "{{ '{0.__class__.__mro__[1].__subclasses__}'.format(1)() }}",
    "attr (CVE-2025-27516)": "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "attributes through map": "{{ [''] | map(attribute='__class__.__mro__') | first | first }}{{ 1 / 0 }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% from 'os' import system %}{{ system('touch canary') }}",
    "parentheses 5,000 deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "ifs 3,000 deep": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "a chain of 8,000 sums": "{{ " + "+".join(["1"] * 8000) + " }}",
    "30,000 expressions": "{{ x }}" * 30_000,
    "300,000 characters": "x" * 300_000,
    "no answer at all": "{{ messages[0].content }}" + "{{ raise_exception('no') }}",
}
for _name, _source in TEMPLATES.items():
    add(f"template: {_name}", "model", text("chat_template.jinja", _source))

# ── GGUF ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def gguf(body: bytes, *, tensors: int = 0, keys: int = 1) -> Make:
    return text("hostile.gguf", b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body)


def gguf_array(kind: int, items: int) -> bytes:
    return struct.pack("<Q", 5) + b"array" + struct.pack("<IIQ", 9, kind, items)


def gguf_tensor(shape: list[int], offset: int, kind: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", 1) + b"t" + dims + struct.pack("<IQ", kind, offset)


add("gguf: a text of 2^63 bytes", "gguf", gguf(struct.pack("<Q", 1 << 63)))
add("gguf: an array of 2^60", "gguf", gguf(gguf_array(0, 1 << 60)))
add("gguf: four million numbers that are not there", "gguf", gguf(gguf_array(4, 4_000_000)))
add("gguf: arrays in arrays", "gguf", gguf(gguf_array(9, 1) + struct.pack("<IQ", 9, 1) * 20_000))
add("gguf: 2^60 tensors", "gguf", gguf(b"", tensors=1 << 60, keys=0))
add("gguf: a shape of 2^63", "gguf", gguf(gguf_tensor([1 << 63], 0) + bytes(64), tensors=1, keys=0))
add("gguf: a shape that overflows", "gguf", gguf(gguf_tensor([1 << 32, 1 << 32], 0) + bytes(64), tensors=1, keys=0))
add("gguf: 2^32 dimensions", "gguf", gguf(struct.pack("<Q", 1) + b"t\xff\xff\xff\xff", tensors=1, keys=0))
add("gguf: an offset of 2^64 - 32", "gguf", gguf(gguf_tensor([8], (1 << 64) - 32) + bytes(64), tensors=1, keys=0))

# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROW = b'{"question": "q", "answer": "a"}\n'
add("data: nested 100,000 deep", "data", text("hostile.jsonl", b'{"question": ' + b"[" * 100_000 + b"\n"))
add("data: one name twice", "data", text("hostile.jsonl", b'{"question": "a", "question": "b", "answer": "c"}\n'))
add("data: NaN", "data", text("hostile.jsonl", b'{"question": "q", "answer": NaN}\n'))
add("data: a number of 100,000 digits", "data", text("hostile.jsonl", b'{"answer": ' + b"9" * 100_000 + b"}\n"))
add("data: 1e999", "data", text("hostile.jsonl", b'{"question": "q", "answer": 1e999}\n'))
add("data: no UTF-8", "data", text("hostile.jsonl", ROW + b'{"question": "\xff"}\n'))
add("data: a pickle", "data", text("hostile.jsonl", pickle.dumps([1, 2, 3]) + b"\n"))
add("data: a table that is none", "data", text("hostile.parquet", b"PAR1" + b"\xff" * 4000 + b"PAR1"))
add("data: an arrow file that is none", "data", text("hostile.arrow", b"ARROW1\0\0" + b"\xff" * 4000))
add("data: a cell without end", "data", text("hostile.csv", b'question,answer\n"' + b"x" * 100_000))


@case("data: a line of 100 MB", "data")
def _(folder: Path) -> None:
    (folder / "hostile.jsonl").write_bytes(ROW)
    os.truncate(folder / "hostile.jsonl", 100 << 20)


def zeros(megabytes: int, piece: bytes) -> bytes:
    """A gzip file of many members, each of which unpacks to a megabyte."""
    return gzip.compress(piece * (1 << 20), mtime=0) * megabytes


@case("data: gzip, one line of 1 GB", "data")
def _(folder: Path) -> None:
    (folder / "hostile.jsonl.gz").write_bytes(zeros(1024, b"x"))


@case("data: gzip, 300 million blank lines", "data")
def _(folder: Path) -> None:
    (folder / "hostile.jsonl.gz").write_bytes(zeros(300, b"\n"))


@case("data: gzip, one array of 1 GB", "data")
def _(folder: Path) -> None:
    (folder / "hostile.json.gz").write_bytes(zeros(1024, b" "))


@case("data: gzip, cut off", "data")
def _(folder: Path) -> None:
    (folder / "hostile.jsonl.gz").write_bytes(gzip.compress(ROW * 1000)[:-20])


def zstandard(piece: bytes) -> bytes:
    import zstandard as library

    packer = library.ZstdCompressor().compressobj()
    return b"".join([*(packer.compress(piece * (1 << 20)) for _ in range(1024)), packer.flush()])


@case("data: Zstandard, one line of 1 GB", "data")
def _(folder: Path) -> None:
    (folder / "hostile.jsonl.zst").write_bytes(zstandard(b"x"))


@case("data: Zstandard, a milliard blank lines", "data")
def _(folder: Path) -> None:
    (folder / "hostile.jsonl.zst").write_bytes(zstandard(b"\n"))


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]\n" for n in range(1, 12))
add("recipe: a call", "recipe", text("hostile.yaml", 'model: !!python/object/apply:os.system ["touch canary"]\n'))
add("recipe: an import", "recipe", text("hostile.yaml", "model: !!python/name:os.system\n"))
add("recipe: _target_", "recipe", text("hostile.yaml", "_target_: os.system\ncommand: touch canary\n"))
add("recipe: a milliard laughs", "recipe", text("hostile.yaml", _LAUGHS))
add("recipe: nested 100,000 deep", "recipe", text("hostile.yaml", "a: " + "[" * 100_000))
add("recipe: nested by indent", "recipe", text("hostile.yaml", "".join(" " * n + "a:\n" for n in range(900))))
add("recipe: one name twice", "recipe", text("hostile.yaml", "model: a\nmodel: b\n"))
add("recipe: merge keys", "recipe", text("hostile.yaml", "a: &a {x: 1}\n<<: *a\n"))
add("recipe: 2 MB", "recipe", text("hostile.yaml", "# x\n" * 500_000))
add("recipe: 400,000 values", "recipe", text("hostile.yaml", "ask: [" + "x," * 400_000 + "]\n"))
add("recipe: no UTF-8", "recipe", text("hostile.yaml", b"model: \xff\xfe\n"))
add("recipe: NUL", "recipe", text("hostile.yaml", "model: a\0b\n"))
add("recipe: an anchor of itself", "recipe", text("hostile.yaml", "train: &a [*a]\n"))
add("recipe: a huge number", "recipe", text("hostile.yaml", "train: {steps: " + "9" * 5000 + "}\n"))
if SYMLINKS:
    add("recipe: an endless device", "recipe", lambda folder: (folder / "hostile.yaml").symlink_to("/dev/zero"))

# ── run folders and adapters ─────────────────────────────────────────────────────────────────────────────────────────


def good_adapter(folder: Path, **changes: Any) -> None:
    (folder / "adapter").mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **changes}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")


for _name, _changes in {
    "of rank 10^9": {"r": 10**9},
    "of rank 0": {"r": 0},
    "of an endless alpha": {"lora_alpha": 1e999},
    "of another kind": {"peft_type": "IA3"},
    "by dotted path": {"target_modules": "os.system"},
    "with a rank for each layer": {"rank_pattern": {".*": 10**6}},
    "of numbers that are texts": {"r": "x"},
}.items():
    add(f"adapter {_name}", "adapter", lambda folder, changes=_changes: good_adapter(folder, **changes))


@case("adapter config nested deep", "adapter")
def _(folder: Path) -> None:
    good_adapter(folder)
    (folder / "adapter" / "adapter_config.json").write_text("[" * 100_000)


def run(**files: str) -> Make:
    """A run folder with some files of a stranger's; the rest is plausible."""

    def make(folder: Path) -> None:
        recipe = f"model: {folder.parent / 'model'}\ndata:\n  train: {folder.parent / 'none.jsonl'}\n"
        contents = {"recipe_yaml": recipe, "manifest_json": "{}", "plan_json": "{}", "events_jsonl": "", **files}
        for name, content in contents.items():
            (folder / name.replace("_", ".")).write_text(content, encoding="utf-8", errors="surrogatepass")

    return make


_EVENTS = "".join(
    json.dumps(event) + "\n"
    for event in (
        {"kind": "start", "step": "<script>", "steps": {"a": 1}, "forecast": [1]},
        {"kind": "step", "step": 1e300, "loss": "x", "seconds": [], "tokens": {}},
        {"kind": "step", "step": 10**17, "loss": 1e308, "learned_tokens": -1, "memory_bytes": "\x1b[2J"},
        {"kind": "watch", "step": 3, "held_out_loss": [[]], "seconds": "y"},
        {"kind": "skip", "step": 3, "places": [{"<img src=x>": 1}], "loss": None, "bound": "z"},
        {"kind": "end", "peak_bytes": None, "held_out_loss": 5},
        {"kind": ["list"]},
    )
)
add("run: a recipe with a call", "run", run(recipe_yaml="model: !!python/object/apply:os.system [touch canary]\n"))
add("run: a recipe that is no recipe", "run", run(recipe_yaml="\0"))
add("run: events of wrong types", "run", run(events_jsonl=_EVENTS))
add("run: events nested deep", "run", run(events_jsonl="[" * 100_000 + "\n" + '{"a":' * 50_000))
add("run: a manifest that is a list", "run", run(manifest_json="[]"))
add("run: a manifest nested deep", "run", run(manifest_json="[" * 100_000))
add("run: a plan that is a list", "run", run(plan_json="[1]"))
add("run: a plan with a device by path", "run", run(plan_json='{"device": "os.system", "dtype": "__import__"}'))
add("run: a model by web address", "run", run(recipe_yaml="model: http://127.0.0.1:9/evil\ndata: {train: d.jsonl}\n"))
add("run: data on a hub by odd id", "run", run(recipe_yaml="model: m\ndata: {train: 'hf:../../etc/passwd'}\n"))
