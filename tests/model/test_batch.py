"""A pack as tensors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from strop.data.packing import pack
from strop.data.records import Example, Place
from strop.model.batch import make_batch


def example(tokens: list[int], prompt: int, number: int) -> Example:
    learned = np.arange(len(tokens)) >= prompt
    return Example(np.array(tokens, np.int32), learned, number, Place("f", number + 1))


def test_a_shared_pack_as_tensors() -> None:
    system = [9] * 10
    examples = [example([*system, 1, 2, 3], 11, 5), example([7], 1, 6), example([*system, 4, 5], 11, 7)]
    batch = make_batch(pack(examples, 100, share_prefixes=True)[0])
    assert batch.tokens_T.tolist() == [*system, 1, 2, 3, 4, 5, 7]
    assert batch.positions_T.tolist() == [*range(13), 10, 11, 0]
    assert batch.sample_ids_T.tolist() == [5] * 13 + [7, 7, 6]
    assert batch.starts == (0, 10, 13, 15, 16)
    assert batch.spans == ((0, 10, 0, 0), (10, 13, 0, 10), (13, 15, 0, 10), (15, 16, 15, 15))
    assert batch.rows_N.tolist() == [10, 11, 13]
    assert batch.targets_N.tolist() == [2, 3, 5]
    assert {batch.tokens_T.dtype, batch.positions_T.dtype, batch.rows_N.dtype} == {torch.int64}


def test_a_pack_that_knows_no_sharing_has_documents_on_their_own() -> None:
    arrays = SimpleNamespace(
        tokens_T=[1, 2, 3],
        targets_T=[2, -100, -100],
        positions_T=[0, 1, 0],
        starts_D1=[0, 2, 3],
        sample_ids_D=[0, 1],
    )
    assert make_batch(arrays).spans == ((0, 2, 0, 0), (2, 3, 2, 2))
