"""A frozen model of transformers with our linears in it: losses, logits, and the documents of a pack kept apart.

It stands where `strop.model.decoder.Decoder` does. A pack is one row of tokens whose positions start again at each
document, which transformers' masks take for documents that do not see one another. Whether this model keeps to that is
tried on its weights when it is loaded (`strop.model.general.trial`); where it does not, each document is a pass of its
own: slower, and right.

Shapes: T tokens of a pass, N learned tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from strop.kernels.dropout import token_keys
from strop.model.batch import Batch
from strop.model.general.head import GeneralHead
from strop.model.general.linear import Layer, Pass, QuantizedLinear
from strop.model.general.skeleton import takes
from strop.model.general.spec import GeneralSpec
from strop.model.lora import Adapter


@dataclass(slots=True)
class GeneralDecoder:
    """A frozen base model; the adapter is handed in.

    Attributes:
        spec: what it is.
        model: transformers' model, its linears replaced.
        base: the path of its part below the head.
        layers: its layers.
        linears: its linears in NF4, in the order of the tree.
        head: logits and losses.
        running: what its linears compute with.
        dtype: dtype of activations.
        device: where it lies.
        isolates: what keeps documents of a pack apart: their "positions", a "mask", or "" where nothing does.
        caches: whether answers go on from what was kept of the tokens before.
        loss_chunk: learned tokens whose logits exist at one time.
    """

    spec: GeneralSpec
    model: Any
    base: str
    layers: list[Layer]
    linears: list[QuantizedLinear]
    head: GeneralHead
    running: Pass
    dtype: torch.dtype
    device: torch.device
    isolates: str = ""
    caches: bool = False
    loss_chunk: int = 256
    _positions: bool = field(init=False)

    def __post_init__(self) -> None:
        self._positions = takes(self.model.get_submodule(self.base).forward, "position_ids")

    def keep_dense(self, layers: int) -> None:
        """Keeps dequantised copies of the first ``layers`` layers, and of no other; of what is outside, with all."""
        for linear in self.linears:
            index = self.spec.layer_of(linear.path)
            if layers >= self.spec.layers or (index is not None and index < layers):
                linear.frozen.keep_dense(self.dtype)
            else:
                linear.frozen.dense_OI = None

    def keep_head(self, *, dense: bool) -> None:
        """The head is always kept in the compute dtype: the model's own code multiplies it."""

    def compute_again(self, layers: int) -> None:
        """Has the first ``layers`` layers keep their input alone and be computed a second time."""
        for index, layer in enumerate(self.layers):
            layer.again = index < layers

    def passes(self, batch: Batch) -> Iterator[Batch]:
        """The passes that a pack takes: one, or one a document."""
        if any(first != last for _, _, first, last in batch.spans):
            raise ValueError("documents that continue others are not computed by the general path")
        if self.isolates or len(batch.spans) == 1:
            yield batch
            return
        for start, end, _, _ in batch.spans:
            inside_N = (batch.rows_N >= start) & (batch.rows_N < end)
            yield replace(
                batch,
                tokens_T=batch.tokens_T[start:end],
                positions_T=batch.positions_T[start:end],
                sample_ids_T=batch.sample_ids_T[start:end],
                starts=(0, end - start),
                rows_N=batch.rows_N[inside_N] - start,
                targets_N=batch.targets_N[inside_N],
                spans=((0, end - start, 0, 0),),
                weights_N=None if batch.weights_N is None else batch.weights_N[inside_N],
            )

    def loss(self, batch: Batch, adapter: Adapter | None, step_key: int | None = None) -> Tensor:
        """Summed loss of a pack's learned tokens, each times its weight: float32 scalar.

        Args:
            batch: the pack.
            adapter: the adapter, or None for the base alone.
            step_key: 32 bits that stand for (seed, step) and turn dropout on; None turns it off.
        """
        losses = [self.pass_loss(one, adapter, step_key) for one in self.passes(batch) if len(one.rows_N)]
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)

    def pass_loss(self, one: Batch, adapter: Adapter | None, step_key: int | None = None) -> Tensor:
        """The same of one pass that learns something; whoever takes its gradients keeps `running` as it is here."""
        with self.running.using(adapter, self.drop_keys(one, adapter, step_key)):
            output = self.output(one)
            hidden_ND = output.last_hidden_state[0][one.rows_N]
            return self.head.loss(output, hidden_ND, one.targets_N, one.weights_N, self.loss_chunk)

    def logits(self, batch: Batch, adapter: Adapter | None) -> Tensor:
        """Logits of every token: float32 [T, V]. For tests and small inputs: training never builds this."""
        found = []
        with self.running.using(adapter):
            for one in self.passes(batch):
                output = self.output(one)
                found.append(self.head.logits(output, output.last_hidden_state[0]))
        return torch.cat(found)

    def output(self, one: Batch) -> Any:
        """What the base gives for a pass: ``last_hidden_state`` [1, T, D] is after the last norm."""
        given: dict[str, Tensor] = {"position_ids": one.positions_T[None]} if self._positions else {}
        if self.isolates == "mask" and len(one.spans) > 1:
            given["attention_mask"] = self._mask(one)
        base = self.model.get_submodule(self.base)
        return base(input_ids=one.tokens_T[None], use_cache=False, return_dict=True, **given)

    def _mask(self, one: Batch) -> Tensor:
        """Which tokens see which [1, 1, T, T]: those of their document up to themselves."""
        starts = torch.tensor(one.starts, device=self.device)
        document_T = torch.repeat_interleave(torch.arange(len(starts) - 1, device=self.device), starts.diff())
        seen_TT = (document_T[:, None] == document_T[None]).tril()
        if self.spec.attention == "sdpa":
            return seen_TT[None, None]
        lowest = torch.finfo(self.dtype).min
        return torch.where(seen_TT, 0.0, lowest).to(self.dtype)[None, None]

    def drop_keys(self, one: Batch, adapter: Adapter | None, step_key: int | None) -> Tensor | None:
        """The dropout's keys of a pass; None where there is no dropout."""
        if step_key is None or adapter is None or adapter.dropout == 0:
            return None
        return token_keys(step_key, one.sample_ids_T, one.positions_T)

    def stages(
        self, batch: Batch, adapter: Adapter | None, step_key: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The layers' outputs on their way up, each with a name: to find where numbers stop being finite."""
        for one in self.passes(batch):
            found: list[tuple[str, Tensor]] = []
            hooks = [layer.register_forward_hook(_keep(found, index)) for index, layer in enumerate(self.layers)]
            try:
                with torch.no_grad(), self.running.using(adapter, self.drop_keys(one, adapter, step_key)):
                    self.output(one)
            finally:
                for hook in hooks:
                    hook.remove()
            yield from found


def _keep(found: list[tuple[str, Tensor]], index: int) -> Any:
    def hook(_layer: Any, _inputs: Sequence[Any], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor):
            found.append((f"the output of layer {index}", hidden))

    return hook
