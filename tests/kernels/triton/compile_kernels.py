"""Compiles every launch of every operation for named GPUs, without one, and prints what each takes, as JSON.

Run in a process of its own: where Triton interprets kernels it cannot compile them.

    python compile_kernels.py 80 90            bfloat16 and float32, heads of 64, 128 and 256
    python compile_kernels.py quick 90         bfloat16, heads of 128
    python compile_kernels.py tiles 90         every tile of attention, in bfloat16
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(1, str(Path(__file__).parents[3] / "benchmarks"))

import torch

from card.compiling import Recorder, resources
from strop.kernels import attention, layer_norm, nf4, rms_norm, rope, select, swiglu
from strop.kernels.activation import apply, apply_backward_
from strop.kernels.attention import Scoring, Span
from strop.kernels.attention_scores import alibi_slopes
from strop.kernels.cross_entropy import softmax_gradient_, token_losses
from strop.kernels.dropout import add_dropped, dropout_into
from strop.kernels.triton import attention as attention_kernels
from strop.kernels.triton import launch, qlora_matmul, tuning
from strop.kernels.triton.attention_tiles import CONFIGS

quick = "quick" in sys.argv
targets = [int(word) for word in sys.argv[1:] if word.isdigit()]
SHOWN = ("KIND", "E", "M", "N", "RANKS")


def rows(dtype) -> None:
    """Operations that go through rows."""
    x, wide, weight = torch.empty(64, 4096, dtype=dtype), torch.empty(64, 8192, dtype=dtype), torch.empty(4096)
    rms_norm.normalize(x, weight, 1e-5, x)
    rms_norm.normalize_backward(x, x, weight, 1e-5, x)
    layer_norm.normalize(x, weight, weight, 1e-5, x)
    layer_norm.normalize_backward(x, x, weight, 1e-5, x)
    swiglu.gate(wide, x)
    swiglu.gate_backward_(x, wide)
    for activation in ("gelu", "gelu_tanh"):
        apply(x, activation, x, gated=False)
        apply_backward_(x, x, activation, gated=False)
    angles = torch.empty(64, 64)
    rope.rotate_(x.view(64, 32, 128), angles, angles)
    rope.rotate_(x.view(64, 32, 128), angles, angles, inverse=True, interleaved=True)
    keys = torch.zeros(64, dtype=torch.int64)
    dropout_into(x, keys, 5, 0.1, x)
    add_dropped(x, keys, 1 << 31, 0.1, x)
    logits, tokens = torch.empty(64, 49152, dtype=dtype), torch.zeros(64, dtype=torch.int64)
    token_losses(logits, tokens)
    softmax_gradient_(logits, tokens)
    softmax_gradient_(logits, tokens, scale=0.5, softcap=30.0)


def blocks(dtype) -> None:
    """Operations that undo NF4."""
    tensor = nf4.quantize(torch.ones(256, 256))
    nf4.dequantize(tensor, dtype=dtype)
    x, out, b = (torch.empty(16, columns, dtype=dtype) for columns in (256, 256, 16))
    for config in qlora_matmul.CONFIGS[: 1 if quick else None]:
        # In place of a choice by measurement.
        qlora_matmul.CONFIGS = (config,)
        qlora_matmul.product(x, tensor, out, None, None, add=False)
        qlora_matmul.product(x, tensor, out, b, b, add=True)


def documents(dtype) -> None:
    """Attention."""
    scorings = (attention.PLAIN, Scoring(0.1, 30.0, 64, alibi_slopes(8)))
    # What runs untuned is that of the first target's generation.
    attention_kernels.generation = lambda device: targets[0] // 10
    for width in (128,) if quick else (64, 128, 256):
        qkv, out, sums = torch.empty(128, 12 * width, dtype=dtype), torch.empty(128, 8 * width), torch.empty(8, 128)
        out = out.to(dtype)
        for scoring in scorings:
            spans = [Span(0, 64, 0, 0), Span(64, 128, 0, 64)]
            for number in range(4 if "tiles" in sys.argv else 1):
                # Tiles of another number than a list has are the first.
                tuning._chosen.update(dict.fromkeys((f"{kernel} {width} {dtype} cpu" for kernel in CONFIGS), number))
                attention_kernels.attend(qkv, spans, 8, 2, scoring, out, sums)
                attention_kernels.attend_backward(qkv, out, out, sums, spans, 8, 2, scoring, qkv)


def launches() -> None:
    """Every operation, in every dtype that is asked for."""
    launch.add_one[(1,)](torch.empty(8), 8, SIZE=8)
    for dtype in (torch.bfloat16,) if quick or "tiles" in sys.argv else (torch.bfloat16, torch.float32):
        for operations in (documents,) if "tiles" in sys.argv else (rows, blocks, documents):
            operations(dtype)


def main() -> None:
    select._forced.set("triton")
    compiled: dict[str, dict[str, int]] = {}
    for target in targets:
        with Recorder().recording(target) as recorder:
            launches()
        for kernel in recorder.kernels.values():
            kinds = "".join(f" {name}" for name, value in kernel.constants.items() if value is True)
            kinds += "".join(f" {key}={value}" for key, value in kernel.constants.items() if key in SHOWN)
            name = f"{kernel.name}{kinds} {' '.join(kernel.dtypes)} sm_{target}"
            compiled[name] = {key: resources(kernel, target)[key] for key in ("shared", "registers", "stack")}
    print(json.dumps(compiled))


main()
