"""What a pass over one pack works with: the pack, the adapter, and where every tensor of every layer lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from strop.kernels.attention import Span
from strop.kernels.dropout import token_keys
from strop.kernels.qlora_linear import AdapterMemory, Dropout, Pair, project, project_backward
from strop.kernels.random import key
from strop.model.batch import Batch
from strop.model.decoder import QKV, Decoder, Layer
from strop.model.host_inputs import HostInputs
from strop.model.lora import Adapter
from strop.model.spec import module_path
from strop.model.workspace import Workspace


class Walk:
    """One pass up and, where gradients are wanted, down again, over one pack.

    Args:
        decoder: the frozen base.
        space: memory laid out for the pack.
        batch: the pack.
        adapter: the adapter, or None for the base alone.
        step_key: turns dropout on.
        keep: whether gradients are wanted: what each layer needs for them is kept.
        narrow: the adapter's matrices in the dtype of the products; None to round them where they are used.
    """

    def __init__(
        self,
        decoder: Decoder,
        space: Workspace,
        batch: Batch,
        adapter: Adapter | None,
        step_key: int | None,
        *,
        keep: bool,
        narrow: Mapping[str, Pair] | None = None,
    ) -> None:
        self.decoder, self.spec = decoder, decoder.spec
        self.space, self.work = space, space.work
        self.batch, self.adapter, self.keep = batch, adapter, keep
        self._matrices = adapter.matrices if adapter else {}
        self._multiplied = self._matrices if narrow is None else narrow
        self.tokens, self.learned = len(batch.tokens_T), len(batch.rows_N)
        self.spans = [Span(*span) for span in batch.spans]
        rotary = decoder.rotary
        self.angles = rotary.angles(batch.positions_T, batch.lengths_T if rotary.follows_length else None)
        self._drop_keys_T: Tensor | None = None
        if step_key is not None and adapter is not None and adapter.dropout > 0:
            self._drop_keys_T = token_keys(step_key, batch.sample_ids_T, batch.positions_T)
        self._drop_keys_N = None if self._drop_keys_T is None else self._drop_keys_T[batch.rows_N]
        self.lowest = self._lowest_adapter()

    def last(self, layer: Layer) -> bool:
        """Whether only learned rows go on after attention."""
        return layer is self.decoder.layers[-1]

    def rows(self, layer: Layer) -> int:
        """Rows that go on after attention."""
        return self.learned if self.last(layer) else self.tokens

    def grade(self, layer: Layer) -> str:
        """What a layer keeps."""
        return self.work.grade(layer.index)

    # Projections.

    def project(self, layer: Layer, group: int, x_TI: Tensor, out_TO: Tensor, *, add: bool = False) -> None:
        """A group of projections with its adapters."""
        frozen, scale = layer.groups[group], self.adapter.scale if self.adapter else 0.0
        drop = self._drop(layer, group)
        project(
            x_TI,
            frozen,
            self._pairs(layer, group, self._multiplied),
            scale,
            drop,
            self._adapter_memory(),
            out_TO,
            add=add,
        )

    def project_backward(self, layer: Layer, group: int, grad_TO: Tensor, x_TI: Tensor, into_TI: Tensor | None) -> None:
        """Its backward pass: the adapters' gradients are added up, the input's overwrites ``into_TI``."""
        assert self.adapter is not None
        pairs = self._pairs(layer, group, self._multiplied)
        grads = [None if pair is None else _gradients(pair) for pair in self._pairs(layer, group)]
        drop = self._drop(layer, group)
        memory, scale = self._adapter_memory(), self.adapter.scale
        project_backward(grad_TO, x_TI, layer.groups[group], pairs, grads, scale, drop, memory, into_TI)

    def targeted(self, layer: Layer, *groups: int) -> bool:
        """Whether any projection of these groups has an adapter."""
        return any(pair is not None for group in groups for pair in self._pairs(layer, group))

    def made_again(self, layer: Layer, group: int) -> bool:
        """Whether a group's input was not kept, and its adapters' gradients need it."""
        return self.grade(layer) != "none" and self.targeted(layer, group)

    def wanted_below(self, layer: Layer, *groups: int) -> bool:
        """Whether something below learns: another layer, or one of these groups of this layer."""
        return layer.index != self.lowest or self.targeted(layer, *groups)

    # Norms and the sums of the residual stream.

    def normalize(self, layer: Layer, norm: str, x_TD: Tensor, name: str) -> Tensor:
        """x through a norm of the layer, into the piece that keeps it; x itself where there is no such norm."""
        if norm not in layer.norms:
            return x_TD
        return layer.norms[norm].write(x_TD, self.own(layer, name, "normal", len(x_TD)))

    def add_to_stream(self, layer: Layer, group: int, x_TI: Tensor, stream_TD: Tensor, norm: str, name: str) -> None:
        """Adds to the residual stream what a group gives, normed and scaled where the decoder does so.

        In 16 bits a group with adapters is added as a whole: the stream's numbers are large beside the adapters' part,
        which would be rounded away if it were added by itself.
        """
        scale = self.spec.residual_scale
        is_exact = self.work.dtype is torch.float32 or not self.targeted(layer, group)
        if norm not in layer.norms and scale == 1.0 and is_exact:
            self.project(layer, group, x_TI, stream_TD, add=True)
            return
        given_TD = self.given(layer, group, x_TI, norm, name)
        if norm in layer.norms:
            given_TD = layer.norms[norm].write(given_TD, self._aside(len(stream_TD)))
        stream_TD.add_(given_TD, alpha=scale)

    def given(self, layer: Layer, group: int, x_TI: Tensor, norm: str, name: str) -> Tensor:
        """What a group gives to the residual stream, before its norm; kept where there is one."""
        rows = len(x_TI)
        given_TD = self.piece(layer, name, rows) if norm in layer.norms else self._aside(rows)
        self.project(layer, group, x_TI, given_TD)
        return given_TD

    def given_gradient(self, layer: Layer, grad_TD: Tensor, norm: str, name: str) -> Tensor:
        """The gradient of what a group gave, from that of the stream: the same memory where nothing lies between."""
        scale, rows = self.spec.residual_scale, len(grad_TD)
        if norm not in layer.norms and scale == 1.0:
            return grad_TD
        into_TD = self.space.take("normal", rows)
        if norm in layer.norms:
            layer.norms[norm].backward(grad_TD, self.piece(layer, name, rows), into_TD.zero_())
        else:
            into_TD.copy_(grad_TD)
        return into_TD if scale == 1.0 else into_TD.mul_(scale)

    def _aside(self, rows: int) -> Tensor:
        """Memory for what is about to be added; free whenever a group has been multiplied."""
        return self.space.take("normal_gradient" if "normal_gradient" in self.space else "normal", rows)

    # Memory.

    def input(self, layer: int) -> Tensor:
        """A layer's input; two take turns where nothing is kept, and memory that nobody touches costs nothing."""
        held = self._host_inputs(layer)
        if held is not None:
            return held.place(layer)[: self.tokens]
        kept = layer if self.keep else layer % 2
        return self.space.take(f"layer.{kept}.input", self.tokens)

    def input_to_write(self, layer: int) -> Tensor:
        """The same, before it is written."""
        held = self._host_inputs(layer)
        return self.input(layer) if held is None else held.room(layer)[: self.tokens]

    def input_written(self, layer: int) -> None:
        """A layer's input is there: it goes to the machine's memory where it is kept there."""
        held = self._host_inputs(layer)
        if held is not None and self.keep:
            held.send(layer, self.tokens)

    def bring_input(self, layer: Layer) -> None:
        """Has the input of a layer on the device that is about to be computed again."""
        held = self._host_inputs(layer.index)
        if held is not None:
            held.bring(layer.index, self.tokens, lowest=self.lowest)

    def _host_inputs(self, layer: int) -> HostInputs | None:
        """What has the layer's input where the machine's memory keeps it; all layers' where nothing is kept."""
        return self.space.host_inputs if not self.keep or layer < self.work.whole_layers else None

    def piece(self, layer: Layer, name: str, rows: int) -> Tensor:
        """A layer's own memory, or that of the layers that are computed again."""
        return self.own(layer, name, f"again.{name}", rows)

    def own(self, layer: Layer, name: str, shared: str, rows: int, columns: int | None = None) -> Tensor:
        """A layer's own piece, or the shared one where it has none; the lowest like layer's where nothing is kept."""
        own = f"layer.{layer.index if self.keep else self._lowest_like(layer)}.{name}"
        return self.space.take(own if own in self.space else shared, rows, columns)

    def _adapter_memory(self) -> AdapterMemory:
        dropped = self.space.all("dropped") if "dropped" in self.space else None
        return AdapterMemory(self.space.all("down"), self.space.all("down_gradient"), dropped)

    def _drop(self, layer: Layer, group: int) -> Dropout | None:
        """The dropout of a group's adapters, for the rows that the group has."""
        keys_T = self._drop_keys_N if self.last(layer) and group != QKV else self._drop_keys_T
        if keys_T is None or self.adapter is None:
            return None
        salts = tuple(key(module_path(layer.index, name)) for name in self.spec.groups[group])
        return Dropout(self.adapter.dropout, keys_T, salts)

    def _pairs(self, layer: Layer, group: int, matrices: Mapping[str, Pair] | None = None) -> Sequence[Pair | None]:
        matrices = self._matrices if matrices is None else matrices
        if group >= len(layer.groups):
            return []
        return [matrices.get(module_path(layer.index, name)) for name in self.spec.groups[group]]

    def _lowest_like(self, layer: Layer) -> int:
        """The lowest layer that keeps the same pieces."""
        experts = self.spec.has_experts
        return next(index for index in range(layer.index + 1) if experts(index) == experts(layer.index))

    def _lowest_adapter(self) -> int:
        """The lowest layer that has an adapter."""
        for layer in self.decoder.layers:
            if self.targeted(layer, *range(len(layer.groups))):
                return layer.index
        return len(self.decoder.layers)


def learned_rows(x_TI: Tensor, rows_N: Tensor, out_NI: Tensor) -> Tensor:
    """The learned rows of x, into given memory."""
    return torch.index_select(x_TI, 0, rows_N, out=out_NI)


def _gradients(pair: Pair) -> Pair:
    a_RI, b_OR = pair
    assert a_RI.grad is not None and b_OR.grad is not None, "gradients have memory before a pass begins"
    return a_RI.grad, b_OR.grad
