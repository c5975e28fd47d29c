"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the adapter, float32, with its state as named tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from strop.errors import InputError
from strop.model.lora import Adapter, read_tensors
from strop.model.tensor_bytes import Content, safetensors_file

STATE_FILE = "optimizer.safetensors"
STEPS = "steps"
"""Its tensor of one whole number."""

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimizer:
    """AdamW with a learning rate a step, and a state that goes to disk without pickle.

    The step is torch's own fused operation, called directly: `torch.optim.AdamW` imports torch's compiler on its first
    step, which took 1.5 s and 130 MB on two Zen 4 cores.
    """

    def __init__(self, adapter: Adapter, weight_decay: float) -> None:
        self.adapter, self._weight_decay = adapter, weight_decay
        self._first, self._second = ({name: torch.zeros_like(m) for name, m in _plain(adapter)} for _ in range(2))
        self._steps = [torch.zeros((), device=matrix.device) for _, matrix in _plain(adapter)]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Moves the adapter by its gradients, whose memory stays for the next step."""
        matrices = self.adapter.parameters()
        torch._foreach_add_(self._steps, 1.0)
        torch._fused_adamw_(
            matrices,
            [matrix.grad for matrix in matrices if matrix.grad is not None],
            list(self._first.values()),
            list(self._second.values()),
            [],
            self._steps,
            lr=learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self._weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def files(self) -> dict[str, Content]:
        """The file of both moments of every matrix and of how many steps were taken, by its name."""
        # Steps that were passed over are no steps of the optimiser: its own count is kept.
        tensors = {f"{name}.{moment}": kept[name] for name in self._first for moment, kept in self._moments()}
        tensors[STEPS] = torch.tensor(self.steps)
        return {STATE_FILE: safetensors_file(tensors)}

    def write(self, folder: Path) -> None:
        """Writes that file into a folder."""
        for name, (_, chunks) in self.files().items():
            with (folder / name).open("wb") as file:
                file.writelines(chunks)

    def read(self, folder: Path, step: int) -> None:
        """Takes up the moments that ``files`` gave after ``step`` steps.

        Raises:
            InputError: no such file, or moments of another adapter.
        """
        tensors = read_tensors(folder / STATE_FILE)
        for name in self._first:
            for moment, kept in self._moments():
                found = tensors.get(f"{name}.{moment}")
                if found is None or found.shape != kept[name].shape:
                    raise InputError(
                        f"{folder / STATE_FILE}: {name}.{moment} does not fit the adapter",
                        expected=f"shape {list(kept[name].shape)}",
                        found="nothing" if found is None else f"shape {list(found.shape)}",
                        do="the recipe of a run may not change between its start and its resumption",
                    )
                kept[name].copy_(found)
        taken = tensors.get(STEPS)
        for count in self._steps:
            count.fill_(float(step if taken is None else taken.item()))

    @property
    def steps(self) -> int:
        """How many were taken."""
        return int(self._steps[0].item()) if self._steps else 0

    def _moments(self) -> tuple[tuple[str, dict[str, Tensor]], ...]:
        return ("exp_avg", self._first), ("exp_avg_sq", self._second)


def _plain(adapter: Adapter) -> list[tuple[str, Tensor]]:
    return [(name, matrix.detach()) for name, matrix in adapter.named().items()]
