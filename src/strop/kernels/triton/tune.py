"""Measures the configurations of every kernel that has several, on the sizes of a job; for the probe, before a run.

What it finds stays with the process (`strop.kernels.triton.tuning`) and goes into checkpoints with everything else that
decides the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.kernels import nf4
from strop.kernels.attention_scores import PLAIN, Scoring, Span
from strop.kernels.triton import attention, qlora_matmul, tuning
from strop.kernels.triton import nf4 as nf4_kernels
from strop.kernels.triton.attention_tiles import CONFIGS
from strop.kernels.triton.launch import generation, width_of


def tune(
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    kv_heads: int,
    width: int,
    tokens: int,
    longest: int,
    outputs: int,
    inputs: int,
    scoring: Scoring = PLAIN,
) -> dict[str, int]:
    """Chooses for one job, and returns all choices that are not the default.

    Args:
        device: a CUDA device.
        dtype: of activations.
        heads: query heads.
        kv_heads: key-value heads.
        width: numbers of a head.
        tokens: of a pack.
        longest: of a document; the pack is made of such.
        outputs: of a projection.
        inputs: of a projection.
        scoring: how scores are made.
    """
    _attention(device, dtype, heads, kv_heads, width, tokens, longest, scoring)
    weight = nf4.quantize(torch.randn(outputs, inputs, generator=_generator())).to(device)
    out = torch.empty(outputs, inputs, dtype=dtype, device=device)
    tuning.measure("nf4.dequantize", nf4_kernels.CONFIGS, device, dtype, run=lambda: nf4.dequantize(weight, out=out))
    if qlora_matmul.can(weight):
        x_TI, y_TO = _random(device, dtype, 64, inputs), torch.empty(64, outputs, dtype=dtype, device=device)
        tuning.measure(
            *("qlora.product", qlora_matmul.CONFIGS, device, dtype),
            run=lambda: qlora_matmul.product(x_TI, weight, y_TO, None, None, add=False),
        )
    return tuning.choices()


def _attention(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    width: int,
    tokens: int,
    longest: int,
    scoring: Scoring,
) -> None:
    qkv_TO = _random(device, dtype, tokens, (heads + 2 * kv_heads) * width)
    grad_TQ = _random(device, dtype, tokens, heads * width)
    out_TQ, grad_qkv_TO = torch.empty_like(grad_TQ), torch.empty_like(qkv_TO)
    sums_HT = torch.empty(heads, tokens, device=device)
    spans = [
        Span(start, min(start + longest, tokens), start, start) for start in range(0, tokens, min(longest, tokens))
    ]

    def forward() -> None:
        attention.attend(qkv_TO, spans, heads, kv_heads, scoring, out_TQ, sums_HT)

    def backward() -> None:
        attention.attend_backward(*(qkv_TO, out_TQ, grad_TQ, sums_HT, spans, heads, kv_heads, scoring, grad_qkv_TO))

    padded = max(width_of(width), attention.LEAST)
    for kernel, configs in CONFIGS.items():
        listed = configs(padded, dtype, generation(device))
        run = forward if kernel == "attention.forward" else backward
        forward()
        tuning.measure(kernel, listed, device, padded, dtype, run=run)


def _random(device: torch.device, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=_generator()).to(device, dtype)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
