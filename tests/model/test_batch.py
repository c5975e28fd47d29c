"""A pack as tensors."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from strop.data.packing import pack
from strop.data.records import Example, Place
from strop.model.batch import make_batch, moved, uploads

CPU = torch.device("cpu")


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


def test_a_pack_moves_whole() -> None:
    """All numbers go over in one piece; what has to be known without asking the device stays on the host as well."""
    examples = [example(list(range(1, 8 + number)), 2, number) for number in range(3)]
    weighted = pack(examples, 100)[0]
    there = moved(replace(make_batch(weighted), weights_N=torch.rand(len(make_batch(weighted).rows_N))), CPU)
    here = make_batch(weighted)
    for name in ("tokens_T", "positions_T", "sample_ids_T", "rows_N", "targets_N"):
        part = getattr(there, name)
        assert torch.equal(part, getattr(here, name))
        assert part.storage_offset() % 64 == 0
        assert part.untyped_storage().data_ptr() == there.tokens_T.untyped_storage().data_ptr()
    assert (there.starts, there.spans) == (here.starts, here.spans)
    assert there.tokens_on_host is there.host_tokens_T
    assert there.lengths_T.tolist() == here.lengths_T.tolist()
    assert there.weights_N is not None


def test_packs_come_in_their_order() -> None:
    packs = pack([example([number] * 9, 2, number) for number in range(5)], 9)
    assert [batch.tokens_T[0].item() for batch in uploads(packs, CPU)] == [one.tokens_T[0] for one in packs]
    assert list(uploads([], CPU)) == []
