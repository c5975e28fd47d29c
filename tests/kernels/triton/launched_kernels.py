"""Tells which kernels the engine's step asks for on packs of many lengths, as JSON: kernels by pack.

Run in a process of its own: nothing is interpreted, nothing compiled, and nothing computed by a kernel.

    python launched_kernels.py FOLDER OF A MODEL
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(1, str(Path(__file__).parents[3] / "benchmarks"))

import numpy as np
import torch

from card.compiling import Recorder
from strop.data.packing import pack
from strop.data.records import Example, Place
from strop.kernels import select
from strop.model.batch import Batch, make_batch
from strop.model.engine import Engine
from strop.model.load import load_decoder
from strop.model.lora import make_adapter
from strop.model.spec import PROJECTIONS
from strop.model.workspace import Work

PACKS = 24


def batch(random: np.random.Generator, shared: bool) -> Batch:
    """A few samples of up to 60 tokens; every length comes up, those that 16 divides and one token too."""
    examples = []
    for index in range(random.integers(1, 6)):
        tokens = random.integers(10, 500, random.integers(2, 60)).astype(np.int32)
        tokens[: len(tokens) // 2] = 11
        learned = np.arange(len(tokens)) >= random.integers(1, len(tokens))
        examples.append(Example(tokens, learned, index, Place("made")))
    (whole,) = pack(examples, 4096, shared)
    return make_batch(whole)


def main() -> None:
    decoder = load_decoder(Path(sys.argv[1]), "cpu", torch.bfloat16)
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.1, targets=PROJECTIONS, seed=1)
    adapter.zero_gradients()
    room = {"tokens": 320, "learned": 320, "whole_layers": 1, "elementwise_layers": 1, "loss_chunk": 50, "rank": 4}
    engine = Engine(decoder, Work(**room, targets=adapter.targets, dropout=True, dtype=torch.bfloat16))
    recorder, random = Recorder(compiles=False), np.random.default_rng(1)
    select._forced.set("triton")
    with recorder.recording(), torch.no_grad():
        for number in range(PACKS):
            recorder.label = str(number)
            engine.gradients(batch(random, number % 2 == 1), adapter, 1, 5)
    print(json.dumps([[kernel.name, int(kernel.label), kernel.launches] for kernel in recorder.kernels.values()]))


main()
