"""What a layer of the general path costs: its own code is run with made-up weights, and its memory and time are taken.

    skeleton ─▶ one layer of each kind, of its true size; weights of one shape are one weight
             ─▶ forward and backward over 64 and 256 tokens: seconds, and bytes that are alive at the peak
             ─▶ the same with one more layer of a kind: the difference is that layer's

Nothing of the model is read. Bytes are counted where torch makes them, so what a kernel takes inside is not seen; time
grows with the tokens of a pass as it did between the two sizes, and attention with their square. That is rough: the
forecasts made of it are within about a third, where those of our own families are within a tenth.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strop.kernels import nf4
from strop.kernels.dropout import token_keys
from strop.model.general.library import quiet
from strop.model.general.linear import Layer, Pass
from strop.model.general.load import made_up_linears, replace_module
from strop.model.general.skeleton import Skeleton, first_of_kinds, make_skeleton, with_layers, zero_weights
from strop.model.general.spec import GeneralSpec
from strop.model.lora import Adapter, make_adapter
from strop.plan.timing_rates import made_up

_SIZES = (64, 256)
_QUANTISED = 1 << 22


@dataclass(frozen=True, slots=True)
class Cost:
    """What something takes, by the tokens of a pass: fixed + each · tokens + square · tokens².

    Attributes:
        fixed: whatever the tokens.
        each: a token.
        square: a token squared.
    """

    fixed: float
    each: float
    square: float = 0.0

    def of(self, tokens: float) -> float:
        """For one pass."""
        return self.fixed + self.each * tokens + self.square * tokens * tokens

    def scaled(self, times: float) -> Cost:
        """So many of them."""
        return Cost(self.fixed * times, self.each * times, self.square * times)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.fixed + other.fixed, self.each + other.each, self.square + other.square)


@dataclass(frozen=True, slots=True)
class GeneralCosts:
    """What a model's passes cost.

    Attributes:
        forward: seconds of a forward pass through all layers.
        both: seconds of a forward and a backward pass through all layers.
        kept: bytes that all layers together keep for the backward pass.
        kept_again: the same where each keeps its input alone.
        working: bytes beside these at the peak.
        working_again: the same while a layer is computed again, all that it then keeps included.
        flops: operations per second of the linears' products.
        quantise: seconds of a weight.
    """

    forward: Cost
    both: Cost
    kept: Cost
    kept_again: Cost
    working: Cost
    working_again: Cost
    flops: float
    quantise: float


def measure_costs(
    config: str, place: Path, spec: GeneralSpec, *, rank: int, dropout: float, targets: tuple[str, ...], device: str,
    dtype: str, threads: int
) -> GeneralCosts:  # fmt: skip
    """Runs layers of a model for some seconds.

    Args:
        config: its config.json, as text.
        place: where that is.
        spec: what the model is.
        rank: of the adapters.
        dropout: of the adapters.
        targets: of the adapters.
        device: "cpu", "cuda" or "cuda:N".
        dtype: of activations.
        threads: of the CPU.
    """
    return _measure(config, place, spec, rank, dropout, targets, device, dtype, threads)


@functools.lru_cache(maxsize=8)
def _measure(
    config: str,
    place: Path,
    spec: GeneralSpec,
    rank: int,
    dropout: float,
    targets: tuple[str, ...],
    device: str,
    dtype: str,
    threads: int,
) -> GeneralCosts:
    import json

    skeleton = make_skeleton(json.loads(config), place, spec.attention)
    kinds = first_of_kinds(skeleton)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with quiet():
            trials = [
                _Trial(
                    spec, skeleton, layers, rank, dropout, targets, torch.device(device), getattr(torch, dtype)
                ).run()
                for layers in ([*kinds], *([*kinds, kind] for kind in kinds))
            ]
        half = torch.full((_QUANTISED // 256, 256), 0.5).bfloat16().to(device)
        quantise = _seconds(lambda: nf4.quantize(half), torch.device(device)) / half.numel()
    finally:
        torch.set_num_threads(before)
    return _costs(spec, kinds, trials, quantise)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a trial took: at both sizes seconds forward and of both directions, and peak bytes without and with."""

    forward: tuple[float, float]
    both: tuple[float, float]
    peak: tuple[float, float]
    peak_again: tuple[float, float]


def _costs(spec: GeneralSpec, kinds: dict[int, list[int]], trials: Sequence[_Found], quantise: float) -> GeneralCosts:
    first, more = trials[0], trials[1:]
    names = ("forward", "both", "peak", "peak_again")
    layers = dict.fromkeys(names, Cost(0.0, 0.0))
    measured = {name: list(getattr(first, name)) for name in names}
    for found, same in zip(more, kinds.values(), strict=True):
        for name in names:
            own = [max(b - a, 0.0) for a, b in zip(getattr(first, name), getattr(found, name), strict=True)]
            measured[name] = [left - one for left, one in zip(measured[name], own, strict=True)]
            layers[name] = layers[name] + _line(own, memory=name.startswith("peak")).scaled(len(same))
    weights = sum(linear.outputs * linear.inputs for linear in spec.linears)
    flops = 4.0 * weights / max(layers["both"].each, 1e-12)
    # Attention over all pairs of a pass, forward and backward, at half the rate of products.
    pairs = 8.0 * spec.hidden * spec.layers / flops if spec.packs else 0.0
    ends = {name: _line([max(one, 0.0) for one in measured[name]], memory=name.startswith("peak")) for name in names}
    return GeneralCosts(
        forward=layers["forward"] + ends["forward"] + Cost(0.0, 0.0, pairs),
        both=layers["both"] + ends["both"] + Cost(0.0, 0.0, 3 * pairs),
        kept=layers["peak"],
        kept_again=layers["peak_again"],
        working=ends["peak"],
        working_again=ends["peak_again"],
        flops=flops,
        quantise=quantise,
    )


def _line(values: Sequence[float], *, memory: bool) -> Cost:
    """Through the values at both sizes: of memory a T + b T², of time a + b T; no part is negative."""
    (few, many), (small, large) = _SIZES, values
    if memory:
        square = max((large / many - small / few) / (many - few), 0.0)
        return Cost(0.0, max(large / many - square * many, 0.0), square)
    each = min(max((large - small) / (many - few), 0.25 * large / many), large / many)
    return Cost(max(large - each * many, 0.0), each)


class _Trial:
    """Some layers of a model with made-up weights."""

    def __init__(
        self,
        spec: GeneralSpec,
        skeleton: Skeleton,
        layers: Sequence[int],
        rank: int,
        dropout: float,
        targets: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        small = with_layers(skeleton, layers)
        self.spec = _with_layers(spec, layers)
        self.running, self.device = Pass(), device
        made_up_linears(self.spec, small, lambda shape: made_up(shape, device), self.running, device)
        zero_weights(small.model, device, dtype)
        self.layers = [Layer(layer) for layer in small.layers]
        replace_module(small.model, small.layers_path, torch.nn.ModuleList(self.layers))
        small.model.requires_grad_(False)
        self.base: Any = small.below_head
        self.adapter: Adapter = make_adapter(
            self.spec,
            rank=rank,
            alpha=rank,
            dropout=dropout,
            targets=targets,
            seed=0,
            device=device,
        )
        self.adapter.zero_gradients()

    def run(self) -> _Found:
        self._both(_SIZES[0])  # what is made once is made
        forward, both, peaks = [], [], {False: [], True: []}  # type: ignore[var-annotated]
        for tokens in _SIZES:
            forward.append(_seconds(lambda tokens=tokens: self._forward(tokens), self.device))
            both.append(_seconds(lambda tokens=tokens: self._both(tokens), self.device))
        for again in (False, True):
            for layer in self.layers:
                layer.again = again
            for tokens in _SIZES:
                with Alive() as alive:
                    self._both(tokens)
                peaks[again].append(float(alive.most))
        return _Found(
            (forward[0], forward[1]),
            (both[0], both[1]),
            (peaks[False][0], peaks[False][1]),
            (peaks[True][0], peaks[True][1]),
        )

    def _output(self, tokens: int) -> Tensor:
        ids_1T = torch.zeros(1, tokens, dtype=torch.int64, device=self.device)
        # Two documents, so that the pass has the mask of a pack.
        positions_T = torch.arange(tokens, device=self.device) % (tokens // 2)
        given = {"position_ids": positions_T[None]} if self.spec.packs else {}
        keys_T = token_keys(1, positions_T, positions_T) if self.adapter.dropout else None
        with self.running.using(self.adapter, keys_T):
            output: Tensor = self.base(input_ids=ids_1T, use_cache=False, return_dict=True, **given).last_hidden_state
            if torch.is_grad_enabled():
                output.backward(torch.zeros_like(output))
        return output

    @torch.no_grad()
    def _forward(self, tokens: int) -> None:
        self._output(tokens)

    def _both(self, tokens: int) -> None:
        with torch.enable_grad():
            self._output(tokens)


def _with_layers(spec: GeneralSpec, layers: Sequence[int]) -> GeneralSpec:
    """The spec of a model of these layers alone."""
    linears = [linear for linear in spec.linears if spec.layer_of(linear.path) is None]
    for position, index in enumerate(layers):
        start = f"{spec.layers_path}.{index}."
        linears += [
            replace(linear, path=f"{spec.layers_path}.{position}.{linear.path.removeprefix(start)}")
            for linear in spec.linears
            if linear.path.startswith(start)
        ]
    return replace(spec, layers=len(layers), linears=tuple(linears))


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that torch makes while it is on, as long as they live.

    Attributes:
        most: the most at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                self._count(leaf.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place = storage.data_ptr()
        if place in given or place in self._seen or not storage.nbytes():
            return
        self._seen.add(place)
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._gone, place, storage.nbytes())

    def _gone(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self._now -= size


def _seconds(run: Any, device: torch.device) -> float:
    """Seconds of the fastest of three runs: one that something else disturbed says nothing."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)
