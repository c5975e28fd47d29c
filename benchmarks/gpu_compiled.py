"""What Triton's compiler makes of every kernel for a GPU, without one: registers, spills, matrix units, loads.

    python benchmarks/gpu_compiled.py [--capability 90] [--tiles] [--json FILE]

The kernels are those of the seed job's shapes (InternLM-chat-7b), of Llama-3-8B's and of the starter model's, in
bfloat16, with the configuration that runs untuned; `--tiles` takes attention's others as well. A launch compiles its
kernel and goes no further. Told are, for each:

    programs     that a multiprocessor holds at a time, by registers and shared memory
    spilled      instructions that move registers to memory and back, in all and in loops that multiply
    multiplies   wgmma (Hopper's own) or mma (Ampere's)
    a score      instructions in the innermost loop of attention, by scores of a tile: the less, the better
    narrow       loads and copies of less than 16 bytes a thread

Versions of Triton differ; which one it was stands in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from torch import Tensor

from card.compiling import Kernel, Recorder, resources
from card.made_model import SIZES, Sizes
from strop.kernels import nf4, rms_norm, rope, select, swiglu
from strop.kernels.attention_scores import PLAIN, Span
from strop.kernels.cross_entropy import softmax_gradient_, token_losses
from strop.kernels.dropout import add_dropped, dropout_into
from strop.kernels.triton import attention, qlora_matmul, tuning
from strop.kernels.triton.attention_tiles import CONFIGS

TOKENS, LOGIT_ROWS, RANK = 8192, 256, 8
STARTER = Sizes(49152, 576, 1536, 30, 9, 3)
SHOWN = ("M", "N", "E", "BLOCKS", "WIDTH", "ROWS", "HEADS", "GRADIENT", "ADD")
COLUMNS = ("kernel", "made for", "warps", "seconds", "registers", "stack", "shared", "programs", "spilled")
COLUMNS += ("multiplies", "a score", "narrow")


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Memory that nothing is written to, and that therefore takes no place."""
    return torch.empty(shape, dtype=dtype)


def rows(sizes: Sizes) -> Iterator[tuple[str, Callable[[], object]]]:
    """What goes through rows."""
    x_TD, weight_D = empty(TOKENS, sizes.hidden), empty(sizes.hidden, dtype=torch.float32)
    gate_up_T2F, gated_TF = empty(TOKENS, 2 * sizes.intermediate), empty(TOKENS, sizes.intermediate)
    head = sizes.hidden // sizes.heads
    heads_THE, angles_TE = empty(TOKENS, sizes.heads + sizes.kv_heads, head), empty(TOKENS, head // 2).float()
    keys_T = torch.zeros(TOKENS, dtype=torch.int64)
    logits_NV = empty(LOGIT_ROWS, sizes.vocabulary, dtype=torch.float32)
    targets_N = torch.zeros(LOGIT_ROWS, dtype=torch.int64)
    yield "norm", lambda: rms_norm.normalize(x_TD, weight_D, 1e-5, x_TD)
    yield "norm, backward", lambda: rms_norm.normalize_backward(x_TD, x_TD, weight_D, 1e-5, x_TD)
    yield "gated product", lambda: swiglu.gate(gate_up_T2F, gated_TF)
    yield "gated product, backward", lambda: swiglu.gate_backward_(gated_TF, gate_up_T2F)
    yield "rope", lambda: rope.rotate_(heads_THE, angles_TE, angles_TE)
    yield "dropout", lambda: dropout_into(x_TD, keys_T, 5, 0.1, x_TD)
    yield "dropout, backward", lambda: add_dropped(x_TD, keys_T, 5, 0.1, x_TD)
    yield "losses", lambda: token_losses(logits_NV, targets_N)
    yield "losses and gradient", lambda: softmax_gradient_(logits_NV, targets_N)


def weights(sizes: Sizes) -> Iterator[tuple[str, Callable[[], object]]]:
    """What undoes NF4."""
    count = sizes.hidden * sizes.hidden
    codes = (empty(count // 2, dtype=torch.uint8), empty(count // nf4.BLOCK, dtype=torch.uint8))
    nested = empty(-(-count // nf4.BLOCK // nf4.NESTED_BLOCK), dtype=torch.float32)
    weight = nf4.NF4Tensor(*codes, nested, torch.tensor(0.0), (sizes.hidden, sizes.hidden))
    x_TI, out_TO, down_TR, b_OR = (empty(64, size) for size in (sizes.hidden, sizes.hidden, RANK, RANK))
    b_OR = empty(sizes.hidden, RANK)
    yield "NF4", lambda: nf4.dequantize(weight, dtype=torch.bfloat16)
    yield "fused product", lambda: qlora_matmul.product(x_TI, weight, out_TO, down_TR, b_OR, add=False)


def documents(sizes: Sizes, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Attention, with the tiles of a number."""
    head, shape = sizes.hidden // sizes.heads, (sizes.heads, sizes.kv_heads)
    qkv_TO = empty(TOKENS, (sizes.heads + 2 * sizes.kv_heads) * head)
    out_TQ, sums_HT = empty(TOKENS, sizes.heads * head), empty(sizes.heads, TOKENS, dtype=torch.float32)
    spans = [Span(start, start + 512, start, start) for start in range(0, TOKENS, 512)]
    tuning.load({tuning.key(kernel, qkv_TO.device, head, qkv_TO.dtype): number for kernel in CONFIGS})
    yield f"tiles {number}", lambda: attention.attend(qkv_TO, spans, *shape, PLAIN, out_TQ, sums_HT)
    yield (
        f"tiles {number}, backward",
        lambda: attention.attend_backward(qkv_TO, out_TQ, out_TQ, sums_HT, spans, *shape, PLAIN, qkv_TO),
    )


def compiled(capability: int, *, tiles: bool) -> Recorder:
    """All kernels, for a device of a capability."""
    recorder = Recorder()
    attention.generation = lambda device: capability // 10  # type: ignore[assignment] # of a device that is not here
    models = {name: SIZES[name] for name in ("internlm-7b", "llama3-8b")} | {"starter": STARTER}
    with recorder.recording(capability), torch.no_grad():
        for name, sizes in models.items():
            for number in range(4 if tiles else 1):
                parts = (*(rows(sizes), weights(sizes)), documents(sizes, number)) if not number else ()
                for part in parts or (documents(sizes, number),):
                    for label, launch in part:
                        recorder.label = f"{name}: {label}"
                        launch()
    return recorder


def row(kernel: Kernel, capability: int) -> dict[str, Any]:
    """What is told of a kernel."""
    found = resources(kernel, capability)
    made_for = " ".join(f"{name}={kernel.constants[name]}" for name in SHOWN if name in kernel.constants)
    counts, loops = found.pop("instructions"), found.pop("loops")
    told = {"kernel": kernel.name, "label": kernel.label, "made for": made_for, "warps": kernel.warps}
    told |= {"seconds": round(kernel.seconds, 2), "launches": kernel.launches, **found}
    told |= {"spilled": counts.get("spill", 0), "spilled_in_loops": sum(loop.get("spill", 0) for loop in loops)}
    told["multiplies"] = next((name for name in ("wgmma", "mma") if counts.get(name)), "")
    if "N" in kernel.constants and loops and kernel.name.startswith("attention"):
        scores = kernel.constants["M"] * kernel.constants["N"]
        told["instructions_a_score"] = round(loops[0]["all"] * kernel.warps * 32 / scores, 1)
    told["narrow"] = {name: counts[name] for name in ("load 32", "load 16", "load 8", "async less") if name in counts}
    return {**told, "instructions": counts}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---" + "|---:" * 7 + "|---|---:|---|"]
    for each in found:
        spilled = f"{each['spilled']} ({each['spilled_in_loops']} in loops)" if each["spilled"] else "0"
        narrow = ", ".join(f"{count} {name}" for name, count in each["narrow"].items()) or "none"
        cells = [f"{each['kernel']} ({each['label'].split(':')[0]})", each["made for"], each["warps"], each["seconds"]]
        cells += [each["registers"], each["stack"], f"{each['shared']:,}", each["programs"], spilled]
        cells += [each["multiplies"] or "–", each.get("instructions_a_score", "–"), narrow]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compiles, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, choices=(80, 89, 90), default=90, help="90 is Hopper's")
    parser.add_argument("--tiles", action="store_true", help="all tiles of attention, not those alone that run untuned")
    parser.add_argument("--json", type=Path, help="write the figures here, and the table beside them")
    given = parser.parse_args()
    select._forced.set("triton")
    recorder = compiled(given.capability, tiles=given.tiles)
    found = [row(kernel, given.capability) for kernel in recorder.kernels.values()]
    text = table(found)
    print(text)
    seconds = sum(each["seconds"] for each in found)
    print(f"Triton {triton.__version__}: {len(found)} kernels, {seconds:.0f} seconds of compiling", file=sys.stderr)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        known = {"triton": triton.__version__, "capability": given.capability, "seconds": seconds}
        given.json.write_text(json.dumps({**known, "kernels": found}, indent=1) + "\n", encoding="utf-8")
        given.json.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
