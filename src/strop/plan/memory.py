"""The memory that a run needs under a plan, by component: the sum of what is really allocated.

A step's own memory is `strop.model.workspace.layout`, the list that the engine allocates by. The base, its copies, the
adapters and the samples have exact sizes as well. What the process held before the plan was made, on a GPU its context,
and what matrix libraries took while they were timed, is measured (`strop.plan.machine`). Of a GPU's memory only what
lies there counts: samples do not, nor what a plan leaves in the machine's memory (`strop.plan.gpu_memory`).

    peak = max(while loading, while training) = the sum of all components; the component "loading" is what loading
           needs beyond training, which is hardly ever anything
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from strop.kernels import nf4
from strop.kernels.attention_scores import score_bytes
from strop.kernels.qlora_linear import BLOCK_WEIGHTS
from strop.model.generate import CACHE_BYTES
from strop.model.spec import DecoderSpec
from strop.model.workspace import Slot, Work, layout
from strop.plan.gpu_memory import ALLOCATOR_BYTES, kernel_bytes, layer_stream_bytes
from strop.plan.job import Job
from strop.plan.machine import Machine, block_rows
from strop.plan.plan import Plan
from strop.plan.workload import Workload

COMPONENTS = (
    "runtime",
    "base in NF4",
    "head",
    "embedding",
    "dequantised copies",
    "weight buffer",
    "adapters and optimiser",
    "saved activations",
    "working memory",
    "loss chunk",
    "attention and product buffers",
    "sample answers",
    "data",
    "allocator",
    "loading",
)
"""The components, in the order that they are shown in."""

# Rows of a stored head that are widened at a time while answering (`strop.model.head`).
_ANSWER_ROWS = 4096
# What torch's matrix library keeps beyond what it took while it was timed, once it has seen every product of a step:
# 35 to 64 MB over models of 0.1 and 1 billion weights and packs of 512 and 2,048 tokens (MKL, AVX-512); OpenBLAS takes
# all of its memory at once. In bfloat16, which it computes only where somebody asks for it, it is code for every shape
# that it meets, up to a gigabyte over a run, and this too little.
_TORCH_PRODUCT_BYTES = 48 << 20
# A parameter, its gradient and AdamW's two moments, float32.
_ADAPTER_BYTES = 16


def plan_work(job: Job, plan: Plan, workload: Workload) -> Work:
    """What the engine lays its memory out for under a plan."""
    return plan.work(
        tokens=workload.largest_pack,
        learned=workload.most_learned,
        targets=job.targets,
        rank=job.rank,
        dropout=job.dropout,
    )


def forecast_memory(job: Job, plan: Plan, workload: Workload, machine: Machine) -> dict[str, int]:
    """Bytes by component, in the order of `COMPONENTS`.

    Args:
        job: what is asked for.
        plan: how it is computed.
        workload: the packs under this plan.
        machine: what is held already.
    """
    spec = job.spec
    work = plan_work(job, plan, workload)
    item = work.dtype.itemsize
    dense = min(plan.dense_layers, spec.layers)
    bytes_of = dict.fromkeys(COMPONENTS, 0)
    for slot in layout(spec, work).values():
        bytes_of[slot.component] += slot.bytes
    in_memory = 0 if plan.on_gpu else job.data_bytes
    bytes_of["runtime"] = max(machine.process_bytes - in_memory, 0)
    bytes_of["data"] = in_memory
    bytes_of["base in NF4"] = _base(job, plan)
    bytes_of["head"] = spec.vocabulary * (spec.hidden * head_item(job, plan) + 4 * spec.head_bias)
    bytes_of["embedding"] = _embedding(job, plan, work)
    bytes_of["dequantised copies"] = spec.weights_below(dense) * item
    bytes_of["weight buffer"] = buffer_weights(spec, dense) * item
    bytes_of["adapters and optimiser"] = job.parameters * (_ADAPTER_BYTES + (0 if item == 4 else item))
    if item != 4:
        # The logits' gradient goes into the product in the compute dtype.
        bytes_of["loss chunk"] += min(work.loss_chunk, work.learned) * spec.vocabulary * item
    bytes_of["attention and product buffers"] = machine.library_bytes + _pack_bytes(spec, work)
    bytes_of["attention and product buffers"] += _score_bytes(spec, workload.longest_sample)
    if plan.checkpoints == "host" and not plan.on_gpu:
        whole = min(plan.recompute_layers, spec.layers)
        bytes_of["saved activations"] += whole * work.tokens * spec.hidden * item
    if plan.on_gpu:
        bytes_of["attention and product buffers"] += kernel_bytes(
            spec, plan, work, workload.longest_sample, workload.most_documents
        )
        bytes_of["allocator"] = ALLOCATOR_BYTES
    if plan.device == "cpu" and plan.matmul == "torch":
        bytes_of["attention and product buffers"] += _TORCH_PRODUCT_BYTES
    bytes_of["sample answers"] = answer_bytes(job, plan)
    bytes_of["loading"] = max(loading_peak(job, bytes_of) - sum(bytes_of.values()), 0)
    return bytes_of


def loading_peak(job: Job, components: Mapping[str, int]) -> int:
    """The most that is held while the base is loaded.

    The head comes first, in the file's dtype beside its copy; the layers' weights one by one, when all else is there.
    """
    spec = job.spec
    before = components["runtime"] + components["data"] + components["head"] + components["allocator"]
    shapes = [*map(spec.projection_shape, spec.projections), *spec.expert_shapes]
    largest = max(rows * columns for rows, columns in shapes)
    # A GPU quantises in slices, by plain operations that make 16 bytes of a weight on their way.
    slices = 16 * min(largest, nf4.QUANTIZE_SLICE) if components["allocator"] else 0
    largest = largest * job.weight_item + slices
    head = spec.vocabulary * spec.hidden * job.head_item
    return before + max(head, components["base in NF4"] + components["embedding"] + largest)


def plan_item(plan: Plan) -> int:
    """Bytes of a number in the plan's dtype."""
    return int(getattr(torch, plan.dtype).itemsize)


def base_bytes(spec: DecoderSpec, weight_item: int) -> int:
    """The frozen layers: NF4 with its scales, norms and biases."""
    each = {name: nf4.size_bytes(prod(spec.projection_shape(name))) for name in spec.projections}
    for name in spec.projections:
        each[name] += spec.projection_shape(name)[0] * weight_item * spec.has_bias(name)
    total = sum(each[name] for layer in range(spec.layers) for name in spec.projections_of(layer))
    if spec.experts is not None:
        count = spec.expert_layers * spec.experts.count
        total += count * sum(nf4.size_bytes(rows * columns) for rows, columns in spec.expert_shapes)
    return total + (spec.norm_weights + spec.router_weights) * 4


def _base(job: Job, plan: Plan) -> int:
    """The base on the device: all of it, or twice the largest layer and what is not quantised; a CPU has both."""
    spec, whole = job.spec, base_bytes(job.spec, job.weight_item)
    if plan.base != "host":
        return whole
    layers = range(spec.layers)
    quantised = sum(nf4.size_bytes(prod(shape)) for layer in layers for shape in spec.quantised_shapes(layer))
    outside = [layer_stream_bytes(spec, layer) for layer in layers]
    return whole - quantised + 2 * max(outside) + (0 if plan.on_gpu else sum(outside))


def buffer_weights(spec: DecoderSpec, copied: int = 0) -> int:
    """Weights that are dequantised at one time: of projections in layers without a copy, and of experts."""
    groups = {names for layer in range(copied, spec.layers) for names in spec.groups_of(layer)}
    shapes = [[spec.projection_shape(name) for name in names] for names in groups]
    if spec.experts is not None:
        gate, up, down = spec.expert_shapes
        shapes += [[gate, up], [down]]
    sizes = [0]
    for group in shapes:
        rows, inputs = sum(outputs for outputs, _ in group), group[0][1]
        if rows * inputs > BLOCK_WEIGHTS:
            rows = min(block_rows(inputs), max(outputs for outputs, _ in group))
        sizes.append(rows * inputs)
    return max(sizes)


def head_item(job: Job, plan: Plan) -> int:
    """Bytes of a number of the head in memory."""
    item = plan_item(plan)
    return item if plan.head == "dense" or job.head_item > 2 else job.head_item


def answer_bytes(job: Job, plan: Plan) -> int:
    """What sample answers take while they are made: cached keys and values, the prompts' pass, logits."""
    if not job.prompts or not job.answer_tokens:
        return 0
    spec, item = job.spec, plan_item(plan)
    token = 2 * spec.layers * spec.kv_heads * spec.head_size * item
    rooms = [prompt + job.answer_tokens for prompt in job.prompts]
    at_once = max(1, min(len(rooms), CACHE_BYTES // (max(rooms) * token)))
    cache = at_once * max(rooms) * token
    # An answer that ends is taken out by copying what the others have: the keys first, then the values.
    copied = cache // 2 * (at_once - 1) // at_once
    queries = spec.heads * spec.head_size
    activated = max(map(spec.activated, range(spec.layers)))
    widest = max(3 * spec.hidden + 4 * activated, spec.hidden + 4 * queries + 4 * spec.kv_heads * spec.head_size)
    prompts = sum(sorted(job.prompts)[-at_once:]) * widest * item
    if _scored(spec, max(job.prompts)):
        # All scores of the longest prompt, and what they are made from.
        prompts += 4 * spec.heads * max(job.prompts) ** 2 * item
    logits = at_once * spec.vocabulary * 4
    head = 0 if head_item(job, plan) == item else _ANSWER_ROWS * spec.hidden * item
    return cache + max(copied, prompts) + logits + head


def _embedding(job: Job, plan: Plan, work: Work) -> int:
    """The embedding where it is not the head, and its rows on their way into the first layer's input."""
    spec = job.spec
    row = spec.hidden * job.embedding_item
    if spec.tied_head:
        return 0 if head_item(job, plan) == work.dtype.itemsize else work.tokens * row
    if plan.embedding == "file":
        return (1 if plan.on_gpu else 2) * work.tokens * row
    if plan.embedding == "host" and plan.on_gpu:
        return work.tokens * row
    return spec.vocabulary * row + (0 if job.embedding_item == work.dtype.itemsize else work.tokens * row)


def _pack_bytes(spec: DecoderSpec, work: Work) -> int:
    """A pack's tokens, places and samples as 64-bit numbers, and its angles with what they are made from."""
    ropes = [spec.rope, *([spec.rope_local] if spec.rope_local else [])]
    angles = sum(
        Slot("", (3, work.tokens, (rope.rotary_size or spec.head_size) // 2), torch.float32).bytes for rope in ropes
    )
    if spec.experts is not None:
        # The router's logits, what they become, and the same backward.
        angles += 6 * 4 * work.tokens * spec.experts.count
    return angles + 8 * (4 * work.tokens + 2 * work.learned)


def _score_bytes(spec: DecoderSpec, longest: int) -> int:
    """What attention works in where scores are not plain: else it works in the library's memory."""
    return score_bytes(spec.heads, longest) if _scored(spec, longest) else 0


def _scored(spec: DecoderSpec, longest: int) -> bool:
    """Whether any layer makes scores that are not plain for documents of so many tokens."""
    windows = spec.windows or (0,)
    return spec.alibi or spec.attention_softcap is not None or any(0 < window < longest for window in windows)
