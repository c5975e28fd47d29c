"""Loading a base: cold (everything read and quantised), again (from the kept NF4), and the peak memory of both.

    python benchmarks/loading.py --size 1b --folder /tmp/loading     # 1.1 G weights, 2.3 GB in bf16
    python benchmarks/loading.py --size 7b --folder /tmp/loading     # 7.3 G weights, 14.6 GB in bf16, 20 GB of disk

The model is a random llama of the size's shape, written to the folder and deleted afterwards. Each load is a process of
its own; its peak is VmHWM less what it had before it began. "hash" is the SHA-256 of the weights, which is read off the
disk once for a model and remembered; "cold" has the files out of the page cache where this program may drop them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 512, "intermediate": 1408, "layers": 8, "heads": 8, "kv_heads": 8, "vocabulary": 32000},
    "1b": {"hidden": 2048, "intermediate": 5632, "layers": 22, "heads": 32, "kv_heads": 4, "vocabulary": 32000},
    "7b": {"hidden": 4096, "intermediate": 11008, "layers": 32, "heads": 32, "kv_heads": 32, "vocabulary": 103168},
}
"""TinyLlama-1.1B's shape, and InternLM-7B's."""

_CHILD = """
import json, sys, time
from pathlib import Path
import torch
import strop.model.load as load
from strop.model.tensors import ModelTensors
def peak():
    return {line.split()[0]: int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('Vm')}
folder = Path(sys.argv[1])
began = peak()['VmRSS:']
start = time.perf_counter()
tensors = ModelTensors(folder)
tensors.reader.sha256()
hashed = time.perf_counter()
decoder = load.load_decoder(folder, head='stored', embedding='file')
done = time.perf_counter()
nf4 = sum(w.nbytes for layer in decoder.layers for group in layer.groups for w in group.weights)
head = tensors.spec.vocabulary * tensors.spec.hidden * 2
print(json.dumps({'hash_s': hashed - start, 'load_s': done - hashed, 'nf4_bytes': nf4, 'head_bytes': head,
                  'peak_bytes': peak()['VmHWM:'] - began}))
"""


def write_model(folder: Path, shape: dict[str, int]) -> int:
    """A random llama in bf16, in shards of one layer; the bytes of its weights."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    hidden, wide = shape["hidden"], shape["intermediate"]
    keys = hidden // shape["heads"] * shape["kv_heads"]
    config = {
        "model_type": "llama",
        "vocab_size": shape["vocabulary"],
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    matrices = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden)}
    matrices |= {"self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden)}
    matrices |= {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
    chance = torch.Generator().manual_seed(0)
    noise = (torch.randn(1 << 24, generator=chance) * 0.02).to(torch.bfloat16)

    def random(*size: int) -> torch.Tensor:
        count = torch.Size(size).numel()
        start = int(torch.randint(1 << 20, (1,), generator=chance))
        return noise.roll(start).repeat(-(-count // noise.numel()))[:count].view(size)

    placed: dict[str, str] = {}
    total = 0

    def shard(name: str, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal total
        save_file(tensors, folder / name)
        placed.update(dict.fromkeys(tensors, name))
        total += sum(tensor.nbytes for tensor in tensors.values())

    for layer in range(shape["layers"]):
        place = f"model.layers.{layer}"
        tensors = {f"{place}.{name}.weight": random(*size) for name, size in matrices.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        shard(f"model-{layer:05}.safetensors", tensors)
    ends = {name: random(shape["vocabulary"], hidden) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    shard("model-end.safetensors", {**ends, "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
    return total


def drop_pages(*folders: Path) -> None:
    """Ask the system to forget the files' pages, so that the next read is the disk's."""
    for folder in folders:
        for path in folder.rglob("*.safetensors"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, cache: Path, *, off: bool = False) -> dict[str, Any]:
    """One load in a process of its own."""
    environment = {**os.environ, "STROP_CACHE": str(cache), **({"STROP_NF4_CACHE": "off"} if off else {})}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder on the disk to measure")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    model, cache = arguments.folder / "model", arguments.folder / "cache"
    if arguments.folder.exists():
        raise SystemExit(f"{arguments.folder} exists")
    try:
        weights = write_model(model, SIZES[arguments.size])
        time.sleep(2.1)  # a file that is younger is hashed but not remembered
        rows: dict[str, dict[str, Any]] = {}
        for name, drop, off in (
            ("cold", True, False),
            ("again, disk", True, False),
            ("again, in memory", False, False),
            ("without cache, in memory", False, True),
        ):
            if drop:
                drop_pages(model, cache)
            rows[name] = measure(model, cache, off=off)
            row = rows[name]
            over = row["peak_bytes"] - row["nf4_bytes"] - row["head_bytes"]
            print(
                f"{arguments.size} {name:26} hash {row['hash_s']:6.2f} s  load {row['load_s']:6.2f} s  "
                f"peak {row['peak_bytes'] / 1e9:5.2f} GB = NF4 {row['nf4_bytes'] / 1e9:.2f} + head "
                f"{row['head_bytes'] / 1e9:.2f} + {over / 1e9:.2f}",
                flush=True,
            )
        if arguments.out:
            about = {"size": arguments.size, "weights_bytes": weights, "processors": os.cpu_count()}
            about |= {"machine": platform.processor() or platform.machine(), "rows": rows}
            arguments.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
