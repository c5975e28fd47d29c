"""A few tokens through a loaded model of the general path: is it a decoder, are documents apart, does its cache hold?

transformers' models differ in these, and no attribute of theirs says it for all: OPT gives its positions to the
embedding alone, Mamba knows none, some count positions from a mask. So it is tried on the weights that are used:

    isolates    a document has the hidden states in a pack that it has alone, by its positions or by a mask; else each
                document is a pass of its own
    caches      a token after kept ones has the hidden states that it has with all before it; else all is computed again
    causal      a token does not see those after it; else the model cannot be tuned to write: refused
    plain       logits are hidden · Wᵀ; else the model's own head makes them
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strop.errors import ModelError
from strop.model.batch import Batch
from strop.model.general.answers import Kept
from strop.model.general.decoder import GeneralDecoder
from strop.model.general.library import broken, quiet

_LENGTHS = (7, 5)
_TOLERANCE = {torch.float32: 1e-4}
_LOW_TOLERANCE = 3e-2


@torch.no_grad()
def try_out(decoder: GeneralDecoder, folder: Path) -> None:
    """Finds out what a decoder's model keeps to, and puts it into the decoder.

    Raises:
        ModelError: it is no causal model, or cannot be run.
    """
    tolerance = _TOLERANCE.get(decoder.dtype, _LOW_TOLERANCE)
    documents = _documents(decoder)
    decoder.isolates = ""
    with quiet():
        try:
            alone = [_hidden(decoder, [document]) for document in documents]
            beginning_TD = _hidden(decoder, [documents[0][:4]])
            decoder.head.find_plain(decoder.output(documents_batch(documents[:1], decoder.device)))
        except Exception as error:  # noqa: BLE001 # theirs raise anything
            raise broken(folder / "config.json", error) from None
        if _difference(beginning_TD, alone[0][:4]) > tolerance:
            raise ModelError(
                f"{folder}: {decoder.spec.family} is no causal model: its tokens see those that come after them",
                expected="a model that writes text from left to right",
                found=f"hidden states that differ by {_difference(beginning_TD, alone[0][:4]):.1e}",
                do="use a decoder; `strop models` lists families",
            )
        decoder.isolates = _isolates(decoder, documents, torch.cat(alone), tolerance)
        decoder.caches = _caches(decoder, documents[0], alone[0], tolerance)


def packed_difference(decoder: GeneralDecoder) -> float:
    """How far hidden states of documents in a pack, as the decoder computes it, are from those that they have alone."""
    documents = _documents(decoder)
    batch = documents_batch(documents, decoder.device)
    with torch.no_grad():
        together_TD = torch.cat([decoder.output(one).last_hidden_state[0] for one in decoder.passes(batch)])
        alone_TD = torch.cat([_hidden(decoder, [document]) for document in documents])
    return _difference(together_TD, alone_TD)


def _isolates(decoder: GeneralDecoder, documents: list[Tensor], alone_TD: Tensor, tolerance: float) -> str:
    """The first way that keeps documents apart; a mask of ours would take the place of a window's."""
    if not decoder.spec.packs:
        return ""
    for way in ("positions",) if decoder.spec.windows else ("positions", "mask"):
        decoder.isolates = way
        try:
            if _difference(_hidden(decoder, documents), alone_TD) <= tolerance:
                return way
        except Exception:  # noqa: BLE001 # a model that cannot take a pack may say so in any way
            continue
    return ""


def _caches(decoder: GeneralDecoder, tokens_T: Tensor, alone_TD: Tensor, tolerance: float) -> bool:
    kept = Kept(decoder)
    try:
        first = kept.extend(tokens_T[:4])[-1]
        second = kept.extend(tokens_T[4:5])[-1]
    except Exception:  # noqa: BLE001 # as above
        return False
    found = kept.found and _difference(torch.stack([first, second]), alone_TD[3:5]) <= tolerance
    return bool(found)


def _documents(decoder: GeneralDecoder) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, decoder.spec.vocabulary, (length,), generator=generator) for length in _LENGTHS]


def _hidden(decoder: GeneralDecoder, documents: list[Tensor]) -> Tensor:
    hidden: Any = decoder.output(documents_batch(documents, decoder.device)).last_hidden_state[0]
    return torch.as_tensor(hidden)


def documents_batch(documents: list[Tensor], device: torch.device) -> Batch:
    """Documents as a pack of which nothing is learned."""
    lengths = [len(document) for document in documents]
    starts = (0, *torch.tensor(lengths).cumsum(0).tolist())
    empty = torch.empty(0, dtype=torch.int64, device=device)
    return Batch(
        torch.cat(documents).to(device),
        torch.cat([torch.arange(length) for length in lengths]).to(device),
        torch.zeros(sum(lengths), dtype=torch.int64, device=device),
        starts,
        empty,
        empty,
        tuple((start, end, start, start) for start, end in pairwise(starts)),
    )


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over norm; infinite where a number is not finite."""
    ratio = ((found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30)).item()
    return ratio if isfinite(ratio) else float("inf")
