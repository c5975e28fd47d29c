"""The MLP of a layer, forward and backward: from the residual stream after attention to what is added to it, and back.

normal = norm(middle)      gate_up = normal W_gate_up      output = middle + activation(gate_up) W_down
"""

from __future__ import annotations

from torch import Tensor

from strop.kernels import activation
from strop.model import experts_block
from strop.model.decoder import DOWN, GATE_UP, OUT, QKV, Layer
from strop.model.spec import ATTENTION_NORM, MLP_NORM, MLP_OUTPUT_NORM
from strop.model.walk import Walk, learned_rows


def forward(walk: Walk, layer: Layer, middle_TD: Tensor, output_TD: Tensor | None) -> None:
    """Writes the layer's output [rows, D]; without one only what the backward pass asks for."""
    rows, spec = len(middle_TD), walk.spec
    if spec.norm_placement == "parallel":
        normal_TD = walk.own(layer, "attention_normal", "normal", walk.tokens)
        if walk.last(layer):
            normal_TD = learned_rows(normal_TD, walk.batch.rows_N, walk.space.take("learned_normal", rows))
    else:
        normal_TD = walk.normalize(layer, MLP_NORM, middle_TD, "mlp_normal")
    if layer.experts is not None:
        if output_TD is not None:
            experts_block.forward(walk, layer.experts, normal_TD, output_TD.copy_(middle_TD))
        return
    gate_up_TG = walk.piece(layer, "gate_up", rows)
    walk.project(layer, GATE_UP, normal_TD, gate_up_TG)
    if output_TD is None and MLP_OUTPUT_NORM not in layer.norms:
        return
    gated_TF = activation.apply(gate_up_TG, spec.activation, _gated(walk, layer, rows), gated=spec.gated_mlp)
    if output_TD is None:
        walk.given(layer, DOWN, gated_TF, MLP_OUTPUT_NORM, "mlp_given")
    else:
        walk.add_to_stream(layer, DOWN, gated_TF, output_TD.copy_(middle_TD), MLP_OUTPUT_NORM, "mlp_given")


def backward(walk: Walk, layer: Layer, grad_TD: Tensor) -> bool:
    """Turns the gradient of the output into that of the middle, in place; False where nothing below learns."""
    rows, spec = len(grad_TD), walk.spec
    if layer.experts is not None:
        below = walk.wanted_below(layer, QKV, OUT)
        if below:
            middle_TD = walk.piece(layer, "middle", rows)
            normal_TD = walk.normalize(layer, MLP_NORM, middle_TD, "mlp_normal")
            into_TD = experts_block.backward(walk, layer.experts, normal_TD, grad_TD)
            layer.norms[MLP_NORM].backward(into_TD, middle_TD, grad_TD)
        return below
    gate_up_TG, gated_TF = walk.piece(layer, "gate_up", rows), _gated(walk, layer, rows)
    if walk.made_again(layer, DOWN):
        activation.apply(gate_up_TG, spec.activation, gated_TF, gated=spec.gated_mlp)
    given_TD = walk.given_gradient(layer, grad_TD, MLP_OUTPUT_NORM, "mlp_given")
    below = walk.wanted_below(layer, QKV, OUT, GATE_UP)
    walk.project_backward(layer, DOWN, given_TD, gated_TF, gated_TF if below else None)
    if below:
        activation.apply_backward_(gated_TF, gate_up_TG, spec.activation, gated=spec.gated_mlp)
        below = _inputs_backward(walk, layer, gate_up_TG, grad_TD)
    return below


def _inputs_backward(walk: Walk, layer: Layer, gate_up_TG: Tensor, grad_TD: Tensor) -> bool:
    rows, spec = len(grad_TD), walk.spec
    below = walk.wanted_below(layer, QKV, OUT)
    if spec.norm_placement == "parallel":
        normal_TD = _shared_normal(walk, layer, rows)
        walk.project_backward(layer, GATE_UP, gate_up_TG, normal_TD, walk.space.take("normal_gradient", rows))
        return below
    middle_TD, norm = walk.piece(layer, "middle", rows), layer.norms.get(MLP_NORM)
    if norm is None:
        into_TD = walk.space.take("normal", rows)
        walk.project_backward(layer, GATE_UP, gate_up_TG, middle_TD, into_TD if below else None)
        if below:
            grad_TD += into_TD
        return below
    normal_TD = walk.own(layer, "mlp_normal", "normal", rows)
    if walk.made_again(layer, GATE_UP):
        norm.write(middle_TD, normal_TD)
    walk.project_backward(layer, GATE_UP, gate_up_TG, normal_TD, normal_TD if below else None)
    if below:
        norm.backward(normal_TD, middle_TD, grad_TD)
    return below


def _shared_normal(walk: Walk, layer: Layer, rows: int) -> Tensor:
    """The input that attention has too; of the learned rows where only these go on."""
    normal_TD = walk.own(layer, "attention_normal", "normal", walk.tokens)
    if walk.made_again(layer, GATE_UP):
        layer.norms[ATTENTION_NORM].write(walk.input(layer.index), normal_TD)
    if not walk.last(layer):
        return normal_TD
    return learned_rows(normal_TD, walk.batch.rows_N, walk.space.take("learned_normal", rows))


def _gated(walk: Walk, layer: Layer, rows: int) -> Tensor:
    return walk.own(layer, "gated", "gated", rows, walk.spec.intermediate)
