"""A plan put into force: the processor's threads and matrix library, the allocator, the base's places, the engine."""

from __future__ import annotations

import torch

from strop.kernels import attention_choice, blas
from strop.model.decoder import Decoder
from strop.model.engine import Engine
from strop.model.general.engine import GeneralEngine
from strop.model.paths import AnyDecoder, AnyEngine
from strop.model.workspace import Work
from strop.plan import gpu
from strop.plan.allocator import return_large_blocks
from strop.plan.plan import Plan


def use_processor(plan: Plan) -> None:
    """Puts a plan's threads and matrix library, or its GPU, into force, for the whole process."""
    return_large_blocks()
    torch.set_num_threads(plan.threads)
    if plan.on_gpu:
        gpu.prepare(plan.device)
        if plan.attention != "native":
            attention_choice.use(plan.attention)
    if plan.device == "cpu":
        blas.set_threads(plan.threads)
        blas.use(plan.matmul if plan.matmul in blas.libraries(getattr(torch, plan.dtype)) else "torch")


def make_engine(decoder: AnyDecoder, plan: Plan, work: Work) -> AnyEngine:
    """An engine that computes as a plan says: dequantised copies, the head's dtype, what layers keep."""
    decoder.loss_chunk = plan.loss_chunk
    if isinstance(decoder, Decoder):
        decoder.keep_base(host=plan.base == "host")
        if not decoder.spec.tied_head:
            decoder.embedding.keep(plan.embedding, decoder.device)
    decoder.keep_dense(plan.dense_layers)
    decoder.keep_head(dense=plan.head == "dense")
    return Engine(decoder, work) if isinstance(decoder, Decoder) else GeneralEngine(decoder, work)
