"""Small models, samples and machines of round numbers for the planner's tests; nothing is read and nothing is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from strop.data.records import Example, Place
from strop.kernels import nf4
from strop.kernels.qlora_linear import WeightBuffer
from strop.model.assemble import make_layer
from strop.model.decoder import Decoder
from strop.model.head import Embedding, Head
from strop.model.lora import parse_targets
from strop.model.norms import Norm
from strop.model.spec import DecoderSpec, RopeSpec
from strop.plan import timing
from strop.plan.job import Job
from strop.plan.machine import Machine, Rates
from strop.plan.plan import Plan
from strop.recipe.schema import Recipe

QKV = "q_proj,k_proj,v_proj"

PLAN = Plan(
    device="cpu",
    dtype="float32",
    pack_tokens=64,
    recompute_layers=0,
    recompute_elementwise=0,
    dense_layers=0,
    head="dense",
    embedding="memory",
    loss_chunk=32,
    prefixes="repeated",
    matmul="torch",
    threads=1,
)


def spec(**changes: Any) -> DecoderSpec:
    """A model of four small layers with nothing square, so that a swapped size shows."""
    values = {
        "family": "llama",
        "vocabulary": 200,
        "hidden": 64,
        "intermediate": 160,
        "layers": 4,
        "heads": 6,
        "kv_heads": 2,
        "head_size": 16,
        "norm_eps": 1e-5,
        "rope": RopeSpec(),
        "tied_head": False,
        "context": 2048,
    }
    return DecoderSpec(**{**values, **changes})


INTERNLM_7B = spec(
    vocabulary=103168,
    hidden=4096,
    intermediate=11008,
    layers=32,
    heads=32,
    kv_heads=32,
    head_size=128,
    attention_input_bias=True,
    attention_output_bias=True,
)


def example(number: int, tokens: int, learned: int, beginning: int = 0) -> Example:
    """A sample whose last ``learned`` tokens are learned and whose first ``beginning`` tokens all samples share."""
    own = np.random.default_rng(number).integers(3, 200, tokens).astype(np.int32)
    own[:beginning] = 1
    own[beginning : beginning + 1] = 3 + number % 190
    taught = np.arange(tokens) >= tokens - learned
    return Example(own, taught, number, Place("made here", number + 1))


def examples(count: int, longest: int = 60, beginning: int = 0) -> list[Example]:
    """Samples of all lengths up to ``longest``, of which a third to all is learned."""
    numbers = np.random.default_rng(count).integers(beginning + 6, longest + 1, count)
    numbers[count // 2] = longest
    return [
        example(index, int(length), max(1, int(length - beginning) * (2 + index % 4) // 6), beginning)
        for index, length in enumerate(numbers)
    ]


def job(**changes: Any) -> Job:
    """A run of three steps of five samples."""
    values = {
        "spec": spec(),
        "targets": parse_targets("all-linear"),
        "rank": 4,
        "dropout": 0.0,
        "steps": 3,
        "samples_per_step": 5,
        "seed": 0,
        "looks": 2,
        "prompts": (7, 12, 9),
        "answer_tokens": 20,
        "head_item": 2,
        "embedding_item": 2,
        "weight_item": 2,
        "learned": examples(15),
        "held_out": examples(4, 30),
    }
    return Job(**{**values, **changes})


def recipe(**sections: Any) -> Recipe:
    """The recipe of `job`, by sections."""
    adapter = {"rank": 4, "targets": "all-linear", **sections.get("adapter", {})}
    train = {"samples_per_step": 5, "steps": 3, **sections.get("train", {})}
    watch = {"every": 3, "answer_tokens": 20, **sections.get("watch", {})}
    return Recipe(model="made here", data={"train": "made here"}, adapter=adapter, train=train, watch=watch)


def dataset(learned: Sequence[Example], held_out: Sequence[Example] = ()) -> Any:
    """What of a data set the planner reads."""
    return SimpleNamespace(learned=list(learned), held_out=list(held_out))


NOTHING = Rates(**{item.name: 0.0 for item in fields(Rates)})
"""Everything takes no time."""


def machine(model: DecoderSpec, *, flops: float = 1e9, rates: Rates | None = None, **changes: Any) -> Machine:
    """A machine that multiplies at one rate whatever the shape, and does the rest as `rates` has it."""
    shapes = {
        timing._shape(rows, inputs, outputs, forward=forward): flops
        for inputs, outputs in timing._weights(model)
        for rows in (64, 256)
        for forward in (True, False)
    }
    values: dict[str, Any] = {
        "device": "cpu",
        "name": "A processor",
        "cores": 2,
        "total_bytes": 16_000_000_000,
        "free_bytes": 12_000_000_000,
        "process_bytes": 300_000_000,
        "library_bytes": 50_000_000,
        "bandwidth": 2e10,
        "matmul": {"torch": {"float32": shapes}},
        "rates": rates or even_rates(),
    }
    return Machine(**{**values, **changes})


def h200(model: DecoderSpec, **changes: Any) -> Machine:
    """A GPU that nobody timed, from published figures: 790 TFLOP/s in bfloat16, 4.8 TB/s, 141 GB, 55 GB/s to the host.

    Element-wise work takes the bytes that it reads and writes in bfloat16 at nine tenths of the bandwidth; attention
    multiplies at half the rate of products, backward two and a half times as much; short products run at 70 %.
    """
    byte, flop = 1 / (0.9 * 4.8e12), 1 / 790e12
    pair = 4 * model.heads * model.head_size * 2 * flop
    position = (2 * model.heads + 2 * model.kv_heads) * model.head_size * 2 * byte
    shapes = {
        timing._shape(rows, inputs, outputs, forward=forward): rate
        for inputs, outputs in timing._weights(model)
        for rows, rate in ((1024, 0.7 * 790e12), (8192, 790e12))
        for forward in (True, False)
    }
    rates = Rates(
        dequantise=2.53 * byte,
        quantise=30 * byte,
        widen=6 * byte,
        norm=4 * byte,
        norm_backward=8 * byte,
        gate=6 * byte,
        gate_backward=10 * byte,
        head_norm=4 * byte,
        head_norm_backward=8 * byte,
        rotate=4 * byte,
        dropout=4 * byte,
        softmax=16 * byte,
        attend=position,
        attend_pair=pair,
        attend_backward=2 * position,
        attend_backward_pair=2.5 * pair,
        scored=position,
        scored_pair=pair,
        scored_backward=2 * position,
        scored_backward_pair=2.5 * pair,
        expert=56e-6,
        adapter=4 * byte / 8,
        adapter_backward=5 * byte / 8,
        optimise=36 * byte,
        answer=2 * byte,
    )
    values: dict[str, Any] = {
        "device": "cuda:0",
        "name": "NVIDIA H200, as published",
        "cores": 16,
        "total_bytes": 141_000_000_000,
        "free_bytes": 140_000_000_000,
        "process_bytes": 480 << 20,
        "library_bytes": 64 << 20,
        "bandwidth": 0.9 * 4.8e12,
        "matmul": {"torch": {"bfloat16": shapes}},
        "rates": rates,
        "upload": 55e9,
        "download": 55e9,
        "launch": 8e-6,
        "host_free_bytes": 100_000_000_000,
        "attention": "varlen",
    }
    return Machine(**{**values, **changes})


def even_rates() -> Rates:
    """Rates like those of a laptop, so that every lever costs something."""
    small = replace(NOTHING, **{item.name: 2e-10 for item in fields(Rates)})
    return replace(small, dequantise=3e-9, widen=1e-9, softmax=1e-9, attend=1e-6, attend_pair=1e-8)


def only(kind: str) -> Rates:
    """A second for each unit of one kind of work, nothing for the rest."""
    return replace(NOTHING, **{kind: 1.0})


def decoder(model: DecoderSpec, plan: Plan) -> Decoder:
    """Random weights, laid out as loading lays them out for a file of bfloat16."""
    generator = torch.Generator().manual_seed(3)
    buffer = WeightBuffer()

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    def read(path: str) -> torch.Tensor:
        name = path.split(".", 3)[-1].removesuffix(".weight").removesuffix(".bias")
        if name in model.norms:
            return torch.ones(model.norms[name])
        if name == "mlp.gate":
            return numbers(model.experts.count, model.hidden)
        return numbers(model.projection_shape(name.split(".")[-1])[0]).bfloat16()

    def read_nf4(path: str) -> nf4.NF4Tensor:
        name = path.split(".")[-2]
        shape = model.projection_shape(name)
        if "experts" in path:
            shape = model.expert_shapes[("gate_proj", "up_proj", "down_proj").index(name)]
        return nf4.quantize(numbers(*shape).bfloat16())

    layers = [make_layer(index, model, read, read_nf4, buffer) for index in range(model.layers)]
    head_VD = numbers(model.vocabulary, model.hidden).bfloat16()
    rows_VD = numbers(model.vocabulary, model.hidden).bfloat16()
    head = Head(head_VD.float() if plan.head == "dense" else head_VD, torch.float32, torch.bfloat16)
    head.scale, head.softcap = model.logit_scale, model.head_softcap
    kept = rows_VD if plan.embedding == "memory" else None
    embedding = Embedding(head.weight_VD if model.tied_head else kept, lambda tokens_U: rows_VD[tokens_U])
    biases = torch.zeros(model.hidden) if model.norm == "layer" else None
    final_norm = Norm(torch.ones(model.hidden), model.norm_eps, biases)
    return Decoder(model, embedding, head, final_norm, layers, torch.float32, buffer, plan.loss_chunk)
