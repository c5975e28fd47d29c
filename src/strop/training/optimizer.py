"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over the adapter, float32, with its state as named tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from strop.errors import InputError
from strop.model.lora import Adapter

STATE_FILE = "optimizer.safetensors"
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimizer:
    """torch's AdamW with a learning rate a step, and a state that goes to disk without pickle."""

    def __init__(self, adapter: Adapter, weight_decay: float) -> None:
        self.adapter = adapter
        self._adam = torch.optim.AdamW(
            adapter.parameters(), lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=True
        )

    def step(self, learning_rate: float) -> None:
        """Moves the adapter by its gradients, and drops them."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def drop_gradients(self) -> None:
        """Forgets the gradients of a step that is not taken."""
        self._adam.zero_grad(set_to_none=True)

    def write(self, folder: Path) -> None:
        """Writes both moments of every matrix."""
        tensors = {}
        for name, matrix in self.adapter.named().items():
            for moment in ("exp_avg", "exp_avg_sq"):
                state = self._adam.state.get(matrix, {}).get(moment, torch.zeros_like(matrix))
                tensors[f"{name}.{moment}"] = state.detach().cpu().contiguous()
        save_file(tensors, folder / STATE_FILE)

    def read(self, folder: Path, step: int) -> None:
        """Takes up the moments that ``write`` left after ``step`` steps."""
        tensors = load_file(folder / STATE_FILE)
        for name, matrix in self.adapter.named().items():
            state: dict[str, Tensor] = {"step": torch.tensor(float(step), device=matrix.device)}
            for moment in ("exp_avg", "exp_avg_sq"):
                found = tensors.get(f"{name}.{moment}")
                if found is None or found.shape != matrix.shape:
                    raise InputError(
                        f"{folder / STATE_FILE}: {name}.{moment} does not fit the adapter",
                        expected=f"shape {list(matrix.shape)}",
                        found="nothing" if found is None else f"shape {list(found.shape)}",
                        do="the recipe of a run may not change between its start and its resumption",
                    )
                state[moment] = found.to(matrix.device)
            self._adam.state[matrix] = state
