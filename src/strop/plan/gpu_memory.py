"""What a plan takes of a GPU beside the list of the engine, and what it takes of the machine's memory.

Triton's kernels work in place. What attention asks for depends on what computes it; torch's plain operations, where
there is no Triton, make numbers in float32 and 64-bit integers on their way. All of these come and go one after
another, so that the largest counts.

Shapes: T tokens of the largest pack, L of the longest sample, D hidden, F intermediate, P queries, keys and values side
by side, Q queries alone, H heads.
"""

from __future__ import annotations

from functools import cache

import torch

from strop.kernels.qlora_linear import BLOCK_WEIGHTS
from strop.kernels.triton import found
from strop.model.spec import DecoderSpec
from strop.model.streamed_base import stream_bytes
from strop.model.workspace import Work
from strop.plan.job import Job
from strop.plan.plan import Plan

ALLOCATOR_BYTES = 24 << 20
"""What torch's allocator holds beyond what it gave out: the unused ends of the last pages of its two pools, which are
of 2 and 20 MiB (`c10/cuda/CUDACachingAllocator.cpp`)."""

# Of the largest cards: 132 on Hopper, 148 on Blackwell.
_MULTIPROCESSORS = 148


def kernel_bytes(spec: DecoderSpec, plan: Plan, work: Work, longest: int, documents: int = 1) -> int:
    """What the operations of a step work in, beside the engine's memory.

    Args:
        spec: the decoder.
        plan: says what computes attention.
        work: the largest pack.
        longest: tokens of the longest document.
        documents: of the pack that has most of them.
    """
    parts = [_attention_bytes(spec, plan, work, longest, documents)]
    if not has_triton():
        parts += _plain_bytes(spec, work)
    return max(parts)


@cache
def has_triton() -> bool:
    """Whether Triton's kernels run on the GPUs here."""
    return torch.cuda.is_available() and not found.reason(torch.device("cuda"))


def _attention_bytes(spec: DecoderSpec, plan: Plan, work: Work, longest: int, documents: int) -> int:
    """What attention makes before it is copied to its place: results, gradients, the logarithms of rows' sums."""
    tokens, item = work.tokens, work.dtype.itemsize
    queries = spec.heads * spec.head_size
    wide = queries + 2 * spec.kv_heads * spec.head_size
    sums = 2 * 4 * tokens * spec.heads
    if plan.attention in ("native", "triton"):
        return sums
    if plan.attention == "plain":
        return 4 * 4 * spec.heads * longest**2
    if plan.attention == "sdpa":
        # A document at a time: what it sees copied, its result, the gradients of all.
        return longest * (3 * wide + 2 * queries) * item + sums
    # Gradients of keys and values are made for every query head before they are added up.
    expanded = 2 * tokens * queries * item if spec.kv_heads < spec.heads else 0
    few = max(1, -(-tokens // longest))
    return (
        tokens * (wide + queries) * item
        + expanded
        + max(_dq_bytes(spec, tokens, few), _dq_bytes(spec, tokens, documents))
        + sums
    )


def _dq_bytes(spec: DecoderSpec, tokens: int, documents: int) -> int:
    """Where FlashAttention adds up the gradient of queries in one order (`mha_varlen_bwd` of its flash_api.cpp).

    float32, so many times that every multiprocessor has work, with 128 rows more for each document.
    """
    splits = -(-_MULTIPROCESSORS // (documents * spec.heads))
    width = -(-spec.head_size // 32) * 32
    return 4 * splits * (tokens + 128 * documents) * spec.heads * width


def _plain_bytes(spec: DecoderSpec, work: Work) -> list[int]:
    tokens, item = work.tokens, work.dtype.itemsize
    wide = (spec.heads + spec.kv_heads) * spec.head_size
    middle = spec.intermediate if spec.expert_layers < spec.layers else 0
    block = min(BLOCK_WEIGHTS, max(inputs * outputs for inputs, outputs in spec.products))
    found = [
        4 * 4 * tokens * spec.hidden,  # a norm's gradient: four tensors in float32
        3 * item * tokens * middle,  # the gated product's: σ, silu and the slope
        2 * item * tokens * wide,  # rotation
        block * (4 + 4),  # NF4: a 64-bit index a byte, then the weights in float32
    ]
    if work.dropout:
        # The hash of every element: 64-bit integers, three at a time.
        found.append(3 * 8 * tokens * max(spec.hidden, middle, spec.heads * spec.head_size))
    return found


def layer_stream_bytes(spec: DecoderSpec, layer: int) -> int:
    """A layer's weights as they lie in the machine's memory, and come from there."""
    return stream_bytes(spec.quantised_shapes(layer))


def host_bytes(job: Job, plan: Plan, work: Work) -> int:
    """Pinned memory of the machine that a plan takes; torch makes blocks of it as large as the next power of two."""
    spec, blocks = job.spec, []
    if plan.base == "host":
        blocks += [layer_stream_bytes(spec, layer) for layer in range(spec.layers)]
    if plan.checkpoints == "host" and plan.recompute_layers:
        layers = min(plan.recompute_layers, spec.layers)
        blocks.append(layers * work.tokens * spec.hidden * work.dtype.itemsize)
    if plan.embedding == "host" and not spec.tied_head:
        row = spec.hidden * job.embedding_item
        blocks += [spec.vocabulary * row, 2 * work.tokens * row]
    return sum(1 << (count - 1).bit_length() for count in blocks if count)
