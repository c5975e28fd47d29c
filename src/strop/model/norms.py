"""A frozen norm of the decoder: root mean square or layer norm, over a row or over each head of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from strop.kernels import layer_norm, rms_norm


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A norm over D numbers. Rows of a multiple of D numbers are normalised in pieces of D: heads.

    Attributes:
        weight_D: float32 [D].
        eps: epsilon.
        bias_D: float32 [D] of a layer norm; None for a root mean square norm.
    """

    weight_D: Tensor
    eps: float
    bias_D: Tensor | None = None

    def __call__(self, x_TI: Tensor) -> Tensor:
        """The differentiable reference."""
        x_THD = x_TI.unflatten(-1, (-1, len(self.weight_D)))
        if self.bias_D is not None:
            return layer_norm.layer_norm(x_THD, self.weight_D, self.bias_D, self.eps).flatten(-2)
        return rms_norm.rms_norm(x_THD, self.weight_D, self.eps).flatten(-2)

    def write(self, x_TI: Tensor, out_TI: Tensor) -> Tensor:
        """The same into memory that is given, and returned; not the memory of x."""
        if self.bias_D is not None:
            return layer_norm.normalize(x_TI, self.weight_D, self.bias_D, self.eps, out_TI)
        return rms_norm.normalize(x_TI, self.weight_D, self.eps, out_TI)

    def backward(self, grad_TI: Tensor, x_TI: Tensor, into_TI: Tensor) -> None:
        """Adds the gradient of x to ``into_TI``; the output's stays as it is."""
        backward = rms_norm.normalize_backward if self.bias_D is None else layer_norm.normalize_backward
        backward(grad_TI, x_TI, self.weight_D, self.eps, into_TI)

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return self.weight_D.nbytes + (0 if self.bias_D is None else self.bias_D.nbytes)
