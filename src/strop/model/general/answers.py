"""Answers of a model of the general path: a prompt at a time, with transformers' own cache where it holds.

A token is drawn as in `strop.model.generate`, from the same numbers. A model whose cache does not give what the whole
prompt gives (`strop.model.general.trial`) is run over all tokens again for each new one: slow, and right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from strop.model.draw import Answer, Draw
from strop.model.lora import Adapter

if TYPE_CHECKING:
    from strop.model.general.decoder import GeneralDecoder

# Under these names models take and give what they keep of the tokens before.
_CACHES = ("past_key_values", "cache_params")


class Kept:
    """What a model keeps of the tokens that it has seen.

    Args:
        decoder: whose model is run.

    Attributes:
        found: whether it gave anything to keep.
    """

    def __init__(self, decoder: GeneralDecoder) -> None:
        self._base = decoder.model.get_submodule(decoder.base)
        self._cache: dict[str, Any] = {}
        self.found = False
        self.output: Any = None

    def extend(self, tokens_T: Tensor) -> Tensor:
        """Hidden states [T, D] of new tokens after those before."""
        device = next(self._base.parameters()).device
        self.output = self._base(input_ids=tokens_T[None].to(device), use_cache=True, return_dict=True, **self._cache)
        self._cache = {name: kept for name in _CACHES if (kept := getattr(self.output, name, None)) is not None}
        self.found = bool(self._cache)
        hidden: Tensor = self.output.last_hidden_state[0]
        return hidden


@torch.no_grad()
def continue_prompts(
    decoder: GeneralDecoder,
    adapter: Adapter | None,
    prompts: Sequence[Sequence[int]],
    stop_tokens: frozenset[int],
    max_tokens: int,
    draw: Draw,
    on_token: Callable[[int, int], None] | None,
) -> list[Answer]:
    """Continues prompts until a stop token or ``max_tokens``; the arguments are those of `strop.model.generate`."""
    with decoder.running.using(adapter):
        return [
            _continue(decoder, list(prompt), number, stop_tokens, max_tokens, draw, on_token)
            for number, prompt in enumerate(prompts)
        ]


def _continue(
    decoder: GeneralDecoder,
    prompt: list[int],
    number: int,
    stop_tokens: frozenset[int],
    max_tokens: int,
    draw: Draw,
    on_token: Callable[[int, int], None] | None,
) -> Answer:
    kept, new = Kept(decoder), prompt
    tokens: list[int] = []
    for place in range(max_tokens):
        if not decoder.caches:
            kept, new = Kept(decoder), prompt + tokens
        hidden_TD = kept.extend(torch.tensor(new))
        logits_1V = decoder.head.logits(kept.output, hidden_TD[-1:])
        (token,) = draw.choose(logits_1V, [number], place)
        if token in stop_tokens:
            return Answer(tokens, True)
        tokens.append(token)
        if on_token:
            on_token(number, token)
        new = [token]
    return Answer(tokens, False)
