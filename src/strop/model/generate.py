"""Answers: batched generation with cached keys and values, at fixed seeds, without touching anything of training.

A batch holds ragged prompts without padding: the prompts run through the decoder as one pack, then every sequence gains
one token a step. A finished sequence leaves the batch, so no work is done for it. A token is drawn with a number that
follows from (seed, prompt, place) alone, so an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from strop.kernels.attention import attend_cached, attention
from strop.model.decoder import Decoder
from strop.model.draw import Answer, Draw
from strop.model.general.answers import continue_prompts
from strop.model.general.decoder import GeneralDecoder
from strop.model.lora import Adapter

# Keys and values of all sequences of a batch stay below this many bytes; more prompts go in more batches.
CACHE_BYTES = 256 << 20


@dataclass(slots=True)
class _Cache:
    """Keys and values of the running sequences: one [B, K, L, E] pair a layer, and how far each is filled [B]."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def keep(self, rows: Tensor) -> None:
        self.keys = [part[rows] for part in self.keys]
        self.values = [part[rows] for part in self.values]


def generate(
    decoder: Decoder | GeneralDecoder,
    adapter: Adapter | None,
    prompts: Sequence[Sequence[int]],
    stop_tokens: Sequence[int],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Continues prompts until a stop token or ``max_tokens``.

    Args:
        decoder: the base.
        adapter: the adapter, or None for the base alone.
        prompts: token ids; none may be empty.
        stop_tokens: ids that end an answer.
        max_tokens: most new tokens an answer may have.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        seed: with (prompt number, place) decides every draw.
        on_token: called with (prompt number, token id) as tokens come.

    Returns:
        One answer a prompt, in order.
    """
    stops = frozenset(stop_tokens)
    if isinstance(decoder, GeneralDecoder):
        draw = Draw(temperature, seed, 0)
        return continue_prompts(decoder, adapter, prompts, stops, max_tokens, draw, on_token)
    return _generate(decoder, adapter, prompts, stops, max_tokens, temperature, seed, on_token)


@torch.inference_mode()
def _generate(
    decoder: Decoder,
    adapter: Adapter | None,
    prompts: Sequence[Sequence[int]],
    stop_tokens: frozenset[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    on_token: Callable[[int, int], None] | None,
) -> list[Answer]:
    spec = decoder.spec
    token_bytes = 2 * spec.layers * spec.kv_heads * spec.head_size * decoder.dtype.itemsize
    answers: list[Answer] = []
    start = 0
    while start < len(prompts):
        longest, end = 0, start
        while end < len(prompts):
            longest = max(longest, len(prompts[end]) + max_tokens)
            if end > start and (end + 1 - start) * longest * token_bytes > CACHE_BYTES:
                break
            end += 1
        draw = Draw(temperature, seed, start)
        batch = prompts[start:end]
        answers += _generate_batch(decoder, adapter, batch, stop_tokens, max_tokens, draw, on_token)
        start = end
    return answers


def _generate_batch(
    decoder: Decoder,
    adapter: Adapter | None,
    prompts: Sequence[Sequence[int]],
    stop_tokens: frozenset[int],
    max_tokens: int,
    draw: Draw,
    on_token: Callable[[int, int], None] | None,
) -> list[Answer]:
    device = decoder.device
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    answers = [Answer([], False) for _ in prompts]
    running = list(range(len(prompts)))
    logits_BV, cache = _prefill(decoder, adapter, prompts, max_tokens)
    for place in range(max_tokens):
        tokens = draw.choose(logits_BV, running, place)
        going = []
        for row, (prompt, token) in enumerate(zip(running, tokens, strict=True)):
            if token in stop_tokens:
                answers[prompt] = Answer(answers[prompt].tokens, True)
                continue
            going.append(row)
            answers[prompt].tokens.append(token)
            if on_token:
                on_token(draw.first_prompt + prompt, token)
        if not going or place + 1 == max_tokens:
            break
        if len(going) < len(running):
            rows = torch.tensor(going, device=device)
            cache.keep(rows)
            lengths_B = lengths_B[rows]
            running = [running[row] for row in going]
        new_B = torch.tensor([tokens[row] for row in going], device=device)
        logits_BV = _extend(decoder, adapter, new_B, lengths_B, cache)
        lengths_B = lengths_B + 1
    return answers


def _prefill(
    decoder: Decoder, adapter: Adapter | None, prompts: Sequence[Sequence[int]], max_tokens: int
) -> tuple[Tensor, _Cache]:
    """Runs the prompts as one pack; returns the logits after each prompt [B, V] and the filled cache."""
    spec, device = decoder.spec, decoder.device
    starts = (0, *accumulate(len(prompt) for prompt in prompts))
    positions_T = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(device)
    last_B = torch.tensor(starts[1:], device=device) - 1
    room = max(len(prompt) for prompt in prompts) + max_tokens
    cache = _Cache()
    x_TD = decoder.embed(torch.tensor([token for prompt in prompts for token in prompt], device=device))
    lengths_T = torch.cat([torch.full((len(prompt),), len(prompt)) for prompt in prompts]).to(device)
    angles = decoder.rotary.angles(positions_T, lengths_T)
    for layer in decoder.layers:
        q_THE, k_TKE, v_TKE = decoder.queries_keys_values(layer, x_TD, adapter, angles)
        for store, part_TKE in ((cache.keys, k_TKE), (cache.values, v_TKE)):
            room_BKLE = torch.zeros(
                len(prompts), spec.kv_heads, room, spec.head_size, dtype=decoder.dtype, device=device
            )
            for row, (start, end) in enumerate(pairwise(starts)):
                room_BKLE[row, :, : end - start] = part_TKE[start:end].transpose(0, 1)
            store.append(room_BKLE)
        y_THE = attention(q_THE, k_TKE, v_TKE, starts, decoder.scoring[layer.index])
        if layer is decoder.layers[-1]:
            x_TD, y_THE = x_TD[last_B], y_THE[last_B]
        x_TD = decoder.after_attention(layer, x_TD, y_THE, adapter)
    return _head(decoder, x_TD), cache


def _extend(decoder: Decoder, adapter: Adapter | None, tokens_B: Tensor, lengths_B: Tensor, cache: _Cache) -> Tensor:
    """Adds one token to every sequence; returns the next logits [B, V]."""
    rows_B = torch.arange(len(tokens_B), device=decoder.device)
    filled = int(lengths_B.max()) + 1
    distance_BL = lengths_B[:, None] - torch.arange(filled, device=decoder.device)
    x_BD = decoder.embed(tokens_B)
    angles = decoder.rotary.angles(lengths_B, lengths_B + 1)
    for layer, keys_BKLE, values_BKLE in zip(decoder.layers, cache.keys, cache.values, strict=True):
        q_BHE, k_BKE, v_BKE = decoder.queries_keys_values(layer, x_BD, adapter, angles)
        keys_BKLE[rows_B, :, lengths_B] = k_BKE
        values_BKLE[rows_B, :, lengths_B] = v_BKE
        seen = keys_BKLE[:, :, :filled], values_BKLE[:, :, :filled]
        y_BHE = attend_cached(q_BHE, *seen, distance_BL, decoder.scoring[layer.index])
        x_BD = decoder.after_attention(layer, x_BD, y_BHE, adapter)
    return _head(decoder, x_BD)


def _head(decoder: Decoder, x_BD: Tensor) -> Tensor:
    return decoder.head.logits(decoder.final_norm(x_BD)).float()
