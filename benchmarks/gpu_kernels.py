"""Each operation of `strop.kernels` on the seed job's shapes: its time beside torch's, its share of the card's roof.

    python benchmarks/gpu_kernels.py [--sizes internlm-7b] [--tokens 512,2048,8192] [--only nf4,…] [--json FILE]

An operation runs as the engine calls it: bfloat16, into memory that is given. "torch" is the reference that every
kernel is held to (`select.forced("torch")`), "Strop" what is chosen on this device: Triton where it is there. Times
are medians by the card's own events. What an operation must read and write once, over its time, is held against a large
copy; what it must multiply, against a large product of matrices; both are measured in this run. Attention is timed in
every implementation that `kernels.attention` offers here, over documents with MATH's lengths.

The last table is where dequantising into a buffer and multiplying begins to beat the fused product, by rows: the
number that `kernels.qlora_linear.fuse_up_to` is to be given. "Strop, tuned" is what the fastest of a kernel's
configurations does, as `kernels.triton.tune` finds them; which those are stands in the JSON file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from card.machine import Timer, facts, roof
from card.made_model import SCALE, SIZES, SPREAD, Sizes
from card.made_samples import math_lengths
from strop.kernels import attention_choice, nf4, qlora_linear, select
from strop.kernels.attention import Span, attend, attend_backward
from strop.kernels.blas import product_in_float32
from strop.kernels.cross_entropy import softmax_gradient_
from strop.kernels.dropout import add_dropped, dropout_into, token_keys
from strop.kernels.qlora_linear import AdapterMemory, FrozenGroup, Pair, WeightBuffer, project, project_backward
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_
from strop.kernels.swiglu import gate, gate_backward_
from strop.kernels.triton import found

RANK = 8
LOGIT_ROWS = 256
FEW_ROWS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        name: the operation.
        tokens: rows.
        run: does it once.
        bytes: that it must read and write, each once.
        flops: that it must do in products of matrices.
        before: puts back what it overwrites, so that it never runs on what it made itself; not timed.
    """

    name: str
    tokens: int
    run: Callable[[], object]
    bytes: float
    flops: float = 0.0
    before: Callable[[], object] = lambda: None


class Maker:
    """Makes the operands of the operations: random numbers on the device, in the compute dtype."""

    def __init__(self, sizes: Sizes, device: str, dtype: torch.dtype) -> None:
        self.sizes, self.device, self.dtype = sizes, device, dtype
        self.generator = torch.Generator(device).manual_seed(5)

    def numbers(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype, generator=self.generator)

    def nf4(self, shape: tuple[int, int]) -> nf4.NF4Tensor:
        """A random weight."""
        blocks = shape[0] * shape[1] // nf4.BLOCK
        drawn: dict[str, Any] = {"dtype": torch.uint8, "device": self.device, "generator": self.generator}
        return nf4.NF4Tensor(
            torch.randint(0, 256, (shape[0] * shape[1] // 2,), **drawn),
            torch.randint(0, 256, (blocks,), **drawn),
            torch.full((-(-blocks // nf4.NESTED_BLOCK),), SPREAD, device=self.device),
            torch.tensor(SCALE, device=self.device),
            shape,
        )

    def group(self, *names: str) -> FrozenGroup:
        """Projections that share an input."""
        return FrozenGroup([self.nf4(self.sizes.shapes()[name]) for name in names], None, WeightBuffer())


def weight_cases(make: Maker, timed_tokens: list[int]) -> Iterator[Case]:
    """Dequantising, and the products with what it gives."""
    sizes, item = make.sizes, make.dtype.itemsize
    groups = {
        "q·k·v": make.group("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": make.group("self_attn.o_proj"),
        "gate·up": make.group("mlp.gate_proj", "mlp.up_proj"),
        "down": make.group("mlp.down_proj"),
    }
    for name, group in groups.items():
        count = sum(group.outputs) * group.weights[0].shape[1]
        packed = sum(weight.nbytes for weight in group.weights)
        out = torch.empty(count, dtype=make.dtype, device=make.device)
        parts = out.split([rows * group.weights[0].shape[1] for rows in group.outputs])

        def dequantise(group: FrozenGroup = group, parts: tuple[Tensor, ...] = parts) -> None:
            for weight, part in zip(group.weights, parts, strict=True):
                nf4.dequantize(weight, out=part)

        yield Case(f"dequantise {name}", 0, dequantise, packed + count * item)
    for tokens in timed_tokens:
        for name, group in groups.items():
            yield from _product_cases(make, name, group, tokens)
    head_VD, hidden_ND = make.numbers(sizes.vocabulary, sizes.hidden), make.numbers(LOGIT_ROWS, sizes.hidden)
    logits_NV = torch.empty(LOGIT_ROWS, sizes.vocabulary, device=make.device)
    flops, moved = 2.0 * LOGIT_ROWS * head_VD.numel(), head_VD.nbytes + logits_NV.nbytes
    yield Case("head", LOGIT_ROWS, lambda: product_in_float32(hidden_ND, head_VD.T, logits_NV), moved, flops)


def _product_cases(make: Maker, name: str, group: FrozenGroup, tokens: int) -> Iterator[Case]:
    inputs, outputs, item = group.weights[0].shape[1], sum(group.outputs), make.dtype.itemsize
    ranks = RANK * len(group.outputs)
    x_TI, out_TO = make.numbers(tokens, inputs), make.numbers(tokens, outputs)
    into_TI = torch.empty_like(x_TI)
    full = {"dtype": torch.float32}
    pairs: list[Pair | None] = [
        (make.numbers(RANK, inputs, **full), make.numbers(rows, RANK, **full)) for rows in group.outputs
    ]
    grads: list[Pair | None] = [(torch.zeros_like(pair[0]), torch.zeros_like(pair[1])) for pair in pairs if pair]
    down = torch.empty(tokens, ranks, device=make.device, dtype=make.dtype)
    memory = AdapterMemory(down, torch.empty_like(down), None)
    flops = 2.0 * tokens * inputs * outputs + 2.0 * tokens * RANK * (inputs * len(group.outputs) + outputs)
    packed = sum(weight.nbytes for weight in group.weights)
    moved = packed + tokens * (inputs + outputs) * item

    def forward() -> None:
        project(x_TI, group, pairs, 2.0, None, memory, out_TO)

    def backward() -> None:
        project_backward(out_TO, x_TI, group, pairs, grads, 2.0, None, memory, into_TI)

    yield Case(f"{name} with adapters", tokens, forward, moved, flops)
    yield Case(f"{name} with adapters, backward", tokens, backward, moved + tokens * inputs * item, flops)


def element_cases(make: Maker, tokens: int) -> Iterator[Case]:
    """Everything between the products."""
    sizes, item = make.sizes, make.dtype.itemsize
    hidden, middle, head = sizes.hidden, sizes.intermediate, sizes.hidden // sizes.heads
    x_TD, y_TD, into_TD = (make.numbers(tokens, hidden) for _ in range(3))
    weight_D, wide = make.numbers(hidden, dtype=torch.float32), tokens * hidden * item
    yield Case("norm", tokens, lambda: normalize(x_TD, weight_D, 1e-5, y_TD), 2 * wide)
    yield Case("norm, backward", tokens, lambda: normalize_backward(y_TD, x_TD, weight_D, 1e-5, into_TD), 4 * wide)
    gate_up_T2F, gated_TF = make.numbers(tokens, 2 * middle), make.numbers(tokens, middle)
    gated = tokens * middle * item
    yield Case("gated product", tokens, lambda: gate(gate_up_T2F, gated_TF), 3 * gated)
    given_T2F = gate_up_T2F.clone()
    put_back = partial(gate_up_T2F.copy_, given_T2F)
    run = partial(gate_backward_, gated_TF, gate_up_T2F)
    yield Case("gated product, backward", tokens, run, 5 * gated, before=put_back)
    heads = sizes.heads + sizes.kv_heads
    heads_THE = make.numbers(tokens, heads, head)
    cos_TE, sin_TE = (make.numbers(tokens, head // 2, dtype=torch.float32) for _ in range(2))
    yield Case("rope on q and k", tokens, lambda: rotate_(heads_THE, cos_TE, sin_TE), 2 * heads_THE.numel() * item)
    places_T = torch.arange(tokens, device=make.device)
    keys_T = token_keys(1, places_T, places_T)
    yield Case("dropout", tokens, lambda: dropout_into(x_TD, keys_T, 7, 0.1, y_TD), 2 * wide)
    yield Case("dropout, backward", tokens, lambda: add_dropped(x_TD, keys_T, 7, 0.1, into_TD), 3 * wide)


def loss_case(make: Maker) -> Case:
    """A chunk of logits to losses and their gradient."""
    logits_NV = make.numbers(LOGIT_ROWS, make.sizes.vocabulary, dtype=torch.float32)
    targets_N = torch.randint(0, make.sizes.vocabulary, (LOGIT_ROWS,), device=make.device)
    given_NV = logits_NV.clone()
    run = partial(softmax_gradient_, logits_NV, targets_N)
    return Case("cross-entropy", LOGIT_ROWS, run, 2.0 * logits_NV.nbytes, before=partial(logits_NV.copy_, given_NV))


def attention_cases(make: Maker, tokens: int, label: str) -> Iterator[Case]:
    """Attention over documents with MATH's lengths."""
    sizes = make.sizes
    head, spans, start = sizes.hidden // sizes.heads, [], 0
    for length in math_lengths(max(8, tokens // 64), seed=1):
        end = min(start + length, tokens)
        spans.append(Span(start, end, start, start))
        start = end
        if end == tokens:
            break
    if start < tokens:
        spans.append(Span(start, tokens, start, start))
    shape = (sizes.heads, sizes.kv_heads)
    qkv_TO = make.numbers(tokens, (sizes.heads + 2 * sizes.kv_heads) * head)
    out_TQ, grad_TQ = make.numbers(tokens, sizes.heads * head), make.numbers(tokens, sizes.heads * head)
    sums_HT = torch.empty(sizes.heads, tokens, device=make.device)
    grad_TO = torch.empty_like(qkv_TO)
    pairs = sum((span.end - span.start) ** 2 for span in spans) / 2
    flops = 4.0 * pairs * sizes.heads * head
    moved = float(qkv_TO.nbytes + out_TQ.nbytes)
    attend(qkv_TO, spans, *shape, out_TQ, sums_HT)

    def backward() -> None:
        attend_backward(qkv_TO, out_TQ, grad_TQ, sums_HT, spans, *shape, grad_TO)

    yield Case(f"attention{label}", tokens, lambda: attend(qkv_TO, spans, *shape, out_TQ, sums_HT), moved, flops)
    yield Case(f"attention, backward{label}", tokens, backward, 2 * moved + out_TQ.nbytes, 2.5 * flops)


def timed(case: Case, timer: Timer, ceiling: dict[str, float], choice: str) -> dict[str, Any]:
    """One row."""
    with select.forced("torch") if choice == "torch" else nullcontext():
        seconds = timer.median(case.run, case.before)
    return {
        "name": case.name,
        "tokens": case.tokens,
        "by": choice,
        "seconds": seconds,
        "gb_per_s": case.bytes / seconds / 1e9,
        "tflop_per_s": case.flops / seconds / 1e12,
        "of_the_roof": max(case.bytes / ceiling["bytes_per_s"], case.flops / ceiling["flops_per_s"]) / seconds,
    }


def all_rows(given: argparse.Namespace, ceiling: dict[str, float]) -> list[dict[str, Any]]:
    """Every operation, by Strop's choice and by torch."""
    dtype = torch.float32 if given.device == "cpu" else torch.bfloat16
    make, timer = Maker(SIZES[given.sizes], given.device, dtype), Timer(given.device, given.seconds)
    rows = []

    def take(cases: Iterator[Case], choices: tuple[str, ...] = ("Strop", "torch")) -> None:
        for case in cases:
            if not given.only or any(word in case.name for word in given.only.split(",")):
                rows.extend(timed(case, timer, ceiling, choice) for choice in choices)

    with torch.no_grad():
        take(weight_cases(make, given.tokens))
        take(iter([loss_case(make)]))
        for tokens in given.tokens:
            take(element_cases(make, tokens))
            for name in attention_choice.available(torch.device(given.device), dtype=dtype):
                with attention_choice.using(name):
                    take(attention_cases(make, tokens, f" ({name})"), ("Strop",))
    return rows


def tuned_rows(given: argparse.Namespace, ceiling: dict[str, float]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What has several configurations, once more under the fastest, and which those are; on a card with Triton."""
    device, sizes = torch.device(given.device), SIZES[given.sizes]
    if device.type != "cuda" or found.reason(device):
        return [], {}
    from strop.kernels.triton import tuning
    from strop.kernels.triton.tune import tune

    make, timer, tokens = (
        Maker(sizes, given.device, torch.bfloat16),
        Timer(given.device, given.seconds),
        given.tokens[-1],
    )
    shape = {"heads": sizes.heads, "kv_heads": sizes.kv_heads, "width": sizes.hidden // sizes.heads}
    choices = tune(
        *(device, make.dtype), **shape, tokens=tokens, longest=512, outputs=sizes.intermediate, inputs=sizes.hidden
    )
    with torch.no_grad(), attention_choice.using("triton"):
        weights = [case for case in weight_cases(make, []) if case.name.startswith("dequantise")]
        cases = (*weights, *attention_cases(make, tokens, " (triton)"))
        rows = [timed(case, timer, ceiling, "Strop, tuned") for case in cases]
    tuning.load({})
    return rows, choices


def threshold_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The fused product beside dequantising and multiplying, by rows; on a card with Triton, whose kernel it is."""
    if given.device == "cpu" or found.reason(torch.device(given.device)):
        return []
    make, timer = Maker(SIZES[given.sizes], given.device, torch.bfloat16), Timer(given.device, given.seconds)
    rows = []
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        group = make.group(name)
        for count in FEW_ROWS:
            (forward, _) = _product_cases(make, name, group, count)
            seconds = {}
            for way, most in (("dequantise and multiply", 0), ("fused", count)):
                qlora_linear.fuse_up_to(most)
                with torch.no_grad():
                    seconds[way] = timer.median(forward.run)
            qlora_linear.fuse_up_to(0)
            rows.append({"projection": name.split(".")[1], "rows": count, "seconds": seconds})
    return rows


def kernel_table(rows: list[dict[str, Any]], thresholds: list[dict[str, Any]]) -> str:
    """Markdown."""
    text = ["| operation | tokens | by | µs | GB/s | TFLOP/s | of the roof |", "|---|---:|---|---:|---:|---:|---:|"]
    for row in rows:
        products = f"{row['tflop_per_s']:.3g}" if row["tflop_per_s"] else "–"
        text.append(
            f"| {row['name']} | {row['tokens'] or '–'} | {row['by']} | {row['seconds'] * 1e6:,.0f} |"
            f" {row['gb_per_s']:,.0f} | {products} | {row['of_the_roof']:.0%} |"
        )
    if thresholds:
        text += ["", "| projection | rows | dequantise and multiply, µs | fused, µs |", "|---|---:|---:|---:|"]
        for row in thresholds:
            plain, fused = (row["seconds"][name] * 1e6 for name in ("dequantise and multiply", "fused"))
            text.append(f"| {row['projection']} | {row['rows']} | {plain:,.0f} | {fused:,.0f} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Times everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=list(SIZES), default="internlm-7b")
    parser.add_argument(
        "--tokens", type=lambda text: [int(part) for part in text.split(",")], default=[512, 2048, 8192]
    )
    parser.add_argument("--only", help="words of operations' names, with commas")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long one operation is repeated")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to test the code")
    parser.add_argument("--json", type=Path, help="write the figures here, and the table beside them")
    given = parser.parse_args()
    if given.tiny:
        given.sizes, given.tokens, given.seconds = "tiny", [64], 0.0
    known, ceiling = facts(given.device), roof(given.device, tiny=given.tiny)
    rows, thresholds = all_rows(given, ceiling), threshold_rows(given)
    tuned, choices = tuned_rows(given, ceiling)
    rows += tuned
    table = kernel_table(rows, thresholds)
    print(table)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        known |= {"sizes": given.sizes, **ceiling, "operations": rows, "fused": thresholds, "choices": choices}
        given.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        given.json.with_suffix(".md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
