"""Forecast against fact: peak memory and time of a step, over recipes, budgets and models of 0.1, 1 and 7 billion.

    python benchmarks/memory_curve.py [--points smollm2,1b,7b] [--dtype float32] [--json FILE]
    python benchmarks/memory_curve.py --points gemma2,qwen3_moe,phi2,baichuan13b,some_experts

Every point is a process of its own. It plans as `strop train` does (probe, forecast, search) for a budget that lies
somewhere between the leanest and the fastest plan, then does what a run does: loads, computes the largest pack once,
generates sample answers, and computes some steps. Compared are the process's peak resident memory, a mean step, and
loading (the real model's; random ones are made, not loaded).

The second line is models of 0.1 to 0.3 billion random weights in the shapes of families that compute otherwise than
Llama: windows, caps and four norms a layer; experts in all layers or some; one layer norm for attention and MLP side by
side; scores that fall with distance.

SmolLM2-135M is the real model. The others have the sizes of TinyLlama-1.1B and InternLM-7B and random weights, which
are made in NF4 directly and never exist in full precision; the head is bfloat16, and an embedding that the plan leaves
in its file is read from a file.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Point:
    """A recipe and a budget.

    Attributes:
        model: "smollm2", "1b", "7b", or one of `FAMILIES`.
        targets: projections that are adapted.
        rank: rank of the adapters.
        dropout: their dropout.
        samples: samples a step.
        longest: tokens of the longest sample.
        share: where the budget lies between the leanest plan (0) and the fastest (1); or bytes, where it is above 1.
        steps: steps that are measured.
    """

    model: str
    targets: str
    rank: int
    dropout: float
    samples: int
    longest: int
    share: float
    steps: int


POINTS = [
    *(Point("smollm2", "q_proj,k_proj,v_proj", 8, 0.0, 16, 512, share, 3) for share in (0.0, 0.3, 1.0)),
    *(Point("smollm2", "all-linear", 16, 0.05, 16, 512, share, 3) for share in (0.0, 0.5, 1.0)),
    Point("smollm2", "all-linear", 16, 0.0, 8, 2048, 0.5, 3),
    *(Point("1b", "q_proj,k_proj,v_proj", 8, 0.0, 4, 512, share, 2) for share in (0.0, 1.0)),
    *(Point("1b", "all-linear", 16, 0.0, 4, 512, share, 2) for share in (0.0, 0.5)),
    Point("7b", "q_proj,k_proj,v_proj", 8, 0.0, 10, 512, 6e9, 1),
    Point("7b", "q_proj,k_proj,v_proj", 8, 0.0, 2, 512, 1.0, 1),
    *(
        Point(model, "all-linear", 16, dropout, 4, longest, share, 2)
        for model in ("gemma2", "qwen3_moe", "phi2", "baichuan13b", "some_experts")
        for dropout, longest, share in ((0.0, 512, 1.0), (0.05, 1024, 0.3))
    ),
]

FAMILIES = ("gemma2", "qwen3_moe", "phi2", "baichuan13b", "some_experts")


def sizes(model: str) -> Any:
    """The sizes of a model that is made here."""
    from strop.model.spec import DecoderSpec, RopeSpec

    if model in FAMILIES:
        return family_sizes(model)
    common = {"family": "llama", "norm_eps": 1e-5, "rope": RopeSpec()}
    if model == "1b":
        shape = {"vocabulary": 32000, "hidden": 2048, "intermediate": 5632, "layers": 22, "heads": 32, "kv_heads": 4}
    else:
        shape = {"vocabulary": 103168, "hidden": 4096, "intermediate": 11008, "layers": 32, "heads": 32, "kv_heads": 32}
    head_size = shape["hidden"] // shape["heads"]
    return DecoderSpec(**common, **shape, head_size=head_size, tied_head=False, context=2048)


def family_sizes(model: str) -> Any:
    """The sizes of a model of a family's kind: the family's proportions, fewer of everything."""
    from strop.model.spec import DecoderSpec, ExpertsSpec, RopeSpec

    layers = 12
    common = {"family": model, "norm_eps": 1e-5, "rope": RopeSpec(), "tied_head": True, "context": 4096}
    shape = {"vocabulary": 32000, "hidden": 768, "intermediate": 3072, "layers": layers, "heads": 12, "kv_heads": 12}
    experts = {"intermediate": 2048, "heads": 16, "kv_heads": 4, "head_size": 64, "qk_norm": "head"}
    kinds: dict[str, dict[str, Any]] = {
        "gemma2": {
            **{"heads": 4, "kv_heads": 2, "head_size": 192, "intermediate": 4608, "norm_placement": "both"},
            **{"activation": "gelu_tanh", "attention_softcap": 50.0, "head_softcap": 30.0, "embedding_scale": 27.7},
            "windows": tuple(256 * (layer % 2 == 0) for layer in range(layers)),
        },
        "qwen3_moe": {**experts, "experts": ExpertsSpec(16, 4, 384)},
        "some_experts": {
            **experts,
            "experts": ExpertsSpec(16, 4, 384, layers=tuple(layer % 2 == 1 for layer in range(layers))),
        },
        "phi2": {
            **{"norm": "layer", "norm_placement": "parallel", "gated_mlp": False, "activation": "gelu_tanh"},
            **{"attention_input_bias": True, "attention_output_bias": True, "mlp_bias": True, "head_bias": True},
            **{"rope": RopeSpec(rotary_size=32), "tied_head": False},
        },
        "baichuan13b": {"alibi": True, "intermediate": 2048, "tied_head": False},
    }
    changes = {"head_size": 64, **kinds[model]}
    return DecoderSpec(**{**common, **shape, **changes})


def samples_of(count: int, longest: int, vocabulary: int) -> list[Any]:
    """Samples with the lengths of MATH solutions: a question, and an answer that is learned."""
    import numpy as np

    from strop.data.records import Example, Place

    generator = np.random.default_rng(7)
    lengths = np.clip(np.exp(generator.normal(np.log(242), 0.5, count)), 32, longest).astype(int)
    samples = []
    for index, length in enumerate(lengths):
        learned = np.zeros(length, dtype=bool)
        learned[length * 2 // 5 :] = True
        tokens = generator.integers(10, vocabulary, length).astype(np.int32)
        samples.append(Example(tokens, learned, index, Place("made here")))
    return samples


def random_decoder(spec: Any, plan: Any, folder: Path) -> Any:
    """A decoder with random weights, made in NF4."""
    import torch

    from strop.kernels.nf4 import BLOCK, NESTED_BLOCK, NF4Tensor
    from strop.kernels.qlora_linear import WeightBuffer
    from strop.model.assemble import make_layer, make_norm
    from strop.model.decoder import Decoder
    from strop.model.head import Embedding, Head

    generator = torch.Generator().manual_seed(3)
    buffer = WeightBuffer()

    def weight(shape: tuple[int, int]) -> NF4Tensor:
        count = shape[0] * shape[1]
        blocks = count // BLOCK
        return NF4Tensor(
            torch.randint(0, 256, (count // 2,), dtype=torch.uint8, generator=generator),
            torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=generator),
            torch.full((-(-blocks // NESTED_BLOCK),), 0.01),
            torch.tensor(0.03),
            shape,
        )

    def other(path: str) -> torch.Tensor:
        """A norm, a bias or a router."""
        name = path.removeprefix("model.").split(".", 2)[-1].rpartition(".")[0]
        if name in spec.norms or path.startswith("model.norm"):
            return torch.ones(spec.norms.get(name, spec.hidden))
        if name == "mlp.gate":
            return torch.randn(spec.experts.count, spec.hidden, generator=generator) * 0.02
        return torch.zeros(spec.projection_shape(name.split(".")[-1])[0], dtype=torch.bfloat16)

    def matrix(path: str) -> NF4Tensor:
        name = path.split(".")[-2]
        if ".experts." in path:
            return weight(spec.expert_shapes[("gate_proj", "up_proj", "down_proj").index(name)])
        return weight(spec.projection_shape(name))

    layers = [make_layer(index, spec, other, matrix, buffer) for index in range(spec.layers)]

    def half() -> torch.Tensor:
        matrix = torch.empty(spec.vocabulary, spec.hidden, dtype=torch.bfloat16)
        for rows in matrix.split(4096):
            rows.copy_(torch.randn(rows.shape, generator=generator) * 0.02)
        return matrix

    bias_V = torch.zeros(spec.vocabulary) if spec.head_bias else None
    dtype = getattr(torch, plan.dtype)
    head_VD = half().to(dtype if plan.head == "dense" else torch.bfloat16)
    head = Head(head_VD, dtype, torch.bfloat16, bias_V, spec.logit_scale, spec.head_softcap)
    if spec.tied_head:
        embedding = Embedding(head_VD)
    elif plan.embedding == "memory":
        embedding = Embedding(half())
    else:
        path = folder / "embedding"
        with path.open("wb") as file:
            for _ in range(0, spec.vocabulary, 4096):
                rows = (torch.randn(4096, spec.hidden, generator=generator) * 0.02).to(torch.bfloat16)
                file.write(rows.view(torch.uint8).numpy().tobytes())

        def read(tokens_U: torch.Tensor) -> torch.Tensor:
            size = 2 * spec.hidden
            with path.open("rb") as file:
                parts = []
                for token in tokens_U.tolist():
                    file.seek(token * size)
                    parts.append(file.read(size))
            return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.bfloat16).view(-1, spec.hidden)

        embedding = Embedding(None, read)
    final_norm = make_norm("model.norm", spec, other)
    return Decoder(spec, embedding, head, final_norm, layers, dtype, buffer)


def child(point: Point, wanted: Any, dtype: str | None, plan_alone: bool, channel: Any) -> None:
    """One point: plan, load, compute, compare; in a process of its own."""
    from strop.model.families import read_spec
    from strop.model.starter import starter_folder
    from strop.model.tensors import ModelTensors
    from strop.plan.choose import choose
    from strop.recipe.schema import Recipe

    folder = starter_folder() if point.model == "smollm2" else None
    spec = read_spec(folder) if folder else sizes(point.model)
    item_bytes = ModelTensors(folder).item_bytes if folder else lambda _: 2
    learned = samples_of(point.samples * point.steps * 2, point.longest, spec.vocabulary)
    recipe = Recipe(
        model="made here",
        data={"train": "made here", "eval": 0.0},
        adapter={"rank": point.rank, "alpha": 16, "dropout": point.dropout, "targets": point.targets},
        train={"samples_per_step": point.samples, "steps": point.steps},
        watch={"answer_tokens": ANSWER_TOKENS},
    )
    dataset = SimpleNamespace(learned=learned, held_out=[])
    began = time.perf_counter()
    levers = {"dtype": dtype} if dtype else {}
    choice = choose(spec, item_bytes, dataset, recipe, steps=point.steps, budget_bytes=wanted, levers=levers)
    planning, forecast = time.perf_counter() - began, choice.forecast
    front = [choice.curve[0].peak_bytes, choice.curve[-1].peak_bytes]
    if plan_alone:
        channel.send({"front": front})
        return
    channel.send(
        {
            "plan": forecast.plan.as_dict(),
            "budget_bytes": wanted,
            "planning_seconds": planning,
            "front": front,
            "forecast_bytes": forecast.peak_bytes,
            "components": dict(forecast.components),
            "step_parts": dict(forecast.step_parts),
            "forecast_step_seconds": forecast.step_seconds,
            "forecast_loading_seconds": forecast.parts["loading"],
            "forecast_answering_seconds": forecast.parts["watching"] / 2,
            "tokens_per_step": choice.workload.read_tokens,
            **compute(point, spec, choice, learned, folder),
        }
    )


def compute(point: Point, spec: Any, choice: Any, learned: list[Any], folder: Path | None) -> dict[str, Any]:
    """Does what a run does under the plan that was chosen, and says what it took."""
    import torch

    from strop.data.order import step_samples
    from strop.data.packing import pack
    from strop.model.generate import generate
    from strop.model.load import load_decoder
    from strop.model.lora import make_adapter, parse_targets
    from strop.plan.apply import make_engine, use_processor
    from strop.training.meter import peak_bytes
    from strop.training.optimizer import Optimizer
    from strop.training.shortage import largest_batch
    from strop.training.state import work_of
    from strop.training.step import accumulate_gradients

    plan = choice.forecast.plan
    use_processor(plan)
    clock = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as place:
        if folder:
            dtype = getattr(torch, plan.dtype)
            decoder = load_decoder(folder, plan.device, dtype, head=plan.head, embedding=plan.embedding)
        else:
            decoder = random_decoder(spec, plan, Path(place))
        targets = parse_targets(point.targets, spec.adaptable)
        shape = {"rank": point.rank, "alpha": 16, "dropout": point.dropout}
        adapter = make_adapter(spec, **shape, targets=targets, seed=0)
        engine = make_engine(decoder, plan, work_of(choice, plan, adapter))
        optimizer = Optimizer(adapter, 0.0)
        clock.append(time.perf_counter())
        peaks = {"loading": peak_bytes(engine.device)}
        batch = largest_batch(choice.workload, engine.device)
        adapter.zero_gradients()
        engine.gradients(batch, adapter, len(batch.rows_N), 0)
        peaks["largest pack"] = peak_bytes(engine.device)
        clock.append(time.perf_counter())
        prompts = [learned[index * len(learned) // 3].tokens.tolist() for index in range(3)]
        generate(decoder, adapter, [prompt[: len(prompt) * 2 // 5] for prompt in prompts], [], ANSWER_TOKENS)
        peaks["answers"] = peak_bytes(engine.device)
        clock.append(time.perf_counter())
        seconds = []
        for step in range(point.steps):
            began = time.perf_counter()
            chosen = [learned[index] for index in step_samples(0, step, len(learned), point.samples)]
            packs = pack(chosen, plan.pack_tokens, plan.shares_prefixes(point.dropout))
            result = accumulate_gradients(engine, adapter, packs, seed=0, step=step, clip=1.0)
            optimizer.step(1e-4)
            seconds.append(time.perf_counter() - began)
            assert math.isfinite(result.loss)
    peaks["steps"] = peak_bytes(engine.device)
    return {
        "peak_bytes": peaks["steps"],
        "peak_bytes_after": peaks,
        "step_seconds": statistics.mean(seconds),
        "loading_seconds": clock[1] - clock[0] if folder else None,
        "answering_seconds": clock[3] - clock[2],
    }


def run_point(
    point: Point, wanted: int | None, dtype: str | None = None, *, plan_alone: bool = False
) -> dict[str, Any]:
    """Runs a point in a fresh process, or only plans it."""
    # As the command line has it; variables that say which kernels a library takes are not a user's.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS"):
        os.environ.pop(name, None)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(point, wanted, dtype, plan_alone, theirs))
    process.start()
    theirs.close()
    try:
        return dict(ours.recv())
    except EOFError:
        raise SystemExit(f"the process of {point} ended with {process.exitcode}") from None
    finally:
        process.join()


def main() -> None:
    from strop.plan.budget import budget_for

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default="smollm2,1b,7b", help="models, with commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="numbers of points, with commas, from 0")
    parser.add_argument("--dtype", help="float32 or bfloat16; by default what strop train takes")
    arguments = parser.parse_args()
    rows = []
    print("| model | adapters | budget | forecast | measured | off by | step forecast | step measured | off by |")
    print("|---|---|---|---|---|---|---|---|---|")
    fronts: dict[tuple[Any, ...], tuple[int, int]] = {}
    only = [int(number) for number in arguments.only.split(",")] if arguments.only else range(len(POINTS))
    for number, point in enumerate(POINTS):
        if point.model not in arguments.points.split(",") or number not in only:
            continue
        key = (point.model, point.targets, point.rank, point.samples, point.longest, point.dropout)
        wanted = int(point.share) if point.share > 1 else None
        if wanted is None and point.share < 1:
            low, high = fronts.get(key, (0, 0))
            if not high:
                low, high = run_point(point, None, arguments.dtype, plan_alone=True)["front"]
                fronts[key] = (low, high)
            # Processes differ by some MB in what they hold before they start: a little more than the least.
            wanted = int(budget_for(low) * 1.04 + (high - low) * point.share)
        measured = run_point(point, wanted, arguments.dtype)
        memory = measured["forecast_bytes"] / measured["peak_bytes"] - 1
        duration = measured["forecast_step_seconds"] / measured["step_seconds"] - 1
        rows.append({**asdict(point), **measured, "memory_off": memory, "time_off": duration})
        print(
            f"| {point.model} | {point.targets} r={point.rank} | {(wanted or 0) / 1e9:.2f} GB |"
            f" {measured['forecast_bytes'] / 1e9:.2f} GB | {measured['peak_bytes'] / 1e9:.2f} GB | {memory:+.1%} |"
            f" {measured['forecast_step_seconds']:.2f} s | {measured['step_seconds']:.2f} s | {duration:+.1%} |",
            flush=True,
        )
    if arguments.json:
        versions = {name: version(name) for name in ("torch", "numpy")}
        facts = {"date": date.today().isoformat(), "machine": platform.processor() or platform.machine(), **versions}
        arguments.json.write_text(json.dumps({**facts, "points": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
