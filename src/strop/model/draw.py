"""What is asked of a model and what comes back: how a token is drawn, and an answer. Both paths answer by this file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.kernels.random import uniform


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated for one prompt.

    Attributes:
        tokens: the new tokens, without the stop token.
        stopped: whether a stop token ended it, and not the limit.
    """

    tokens: list[int]
    stopped: bool


@dataclass(frozen=True, slots=True)
class Draw:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        seed: with (prompt number, place) decides every draw.
        first_prompt: number of the first prompt of a batch.
    """

    temperature: float
    seed: int
    first_prompt: int

    def choose(self, logits_BV: Tensor, prompts: Sequence[int], place: int) -> list[int]:
        """The next token of each prompt of a batch.

        Args:
            logits_BV: float32 [B, V].
            prompts: number of each row's prompt in the batch.
            place: how many tokens were drawn before.
        """
        if self.temperature == 0:
            chosen: list[int] = logits_BV.argmax(dim=1).tolist()
            return chosen
        share_BV = (logits_BV.double() / self.temperature).softmax(dim=1).cumsum(dim=1)
        points = [uniform((1,), self.seed, self.first_prompt + prompt, place).item() for prompt in prompts]
        point_B1 = torch.tensor(points, dtype=torch.float64, device=logits_BV.device)[:, None]
        found = torch.searchsorted(share_BV, point_B1 * share_BV[:, -1:], right=True)
        drawn: list[int] = found.clamp(max=logits_BV.shape[1] - 1)[:, 0].tolist()
        return drawn
