"""The adapter: A and B of every targeted projection, made, counted, and kept on disk in PEFT's format.

A starts uniform in ±1/√I (PEFT's Kaiming initialisation with a = √5), B at zero, so that an untrained adapter changes
nothing. A's numbers follow from (seed, module path) alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from strop.errors import ModelError, UsageError
from strop.foreign import read_json, resolved_inside
from strop.kernels.random import uniform
from strop.model.adapter_tree import PREFIX, from_tree, targets_of, to_tree, tree_settings
from strop.model.general.spec import GeneralSpec
from strop.model.spec import PROJECTIONS, DecoderSpec
from strop.model.tensor_bytes import Content, safetensors_file

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MOST_RANK = 1024


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA matrices by module path.

    Attributes:
        rank: R.
        alpha: the adapter is scaled by alpha / rank.
        dropout: chance that an element of the adapter's input is dropped in training.
        targets: names of the targeted projections.
        matrices: module path → (A float32 [R, I], B float32 [O, R]).
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    matrices: dict[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def parameters(self) -> list[Tensor]:
        """All matrices, in a fixed order."""
        return [matrix for pair in self.matrices.values() for matrix in pair]

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return sum(matrix.numel() for matrix in self.parameters())

    def zero_gradients(self) -> list[Tensor]:
        """The gradients of all matrices, at zero; their memory is made once."""
        matrices = self.parameters()
        for matrix in matrices:
            if matrix.grad is None:
                matrix.grad = torch.empty_like(matrix)
        grads = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_zero_(grads)
        return grads

    def named(self) -> dict[str, Tensor]:
        """The matrices under canonical names, with PEFT's endings."""
        return {
            f"{PREFIX}{path}.lora_{letter}.weight": matrix
            for path, pair in self.matrices.items()
            for letter, matrix in zip("AB", pair, strict=True)
        }


def parse_targets(text: str, projections: Sequence[str] = PROJECTIONS) -> tuple[str, ...]:
    """Names of the projections that ``adapter.targets`` asks for, in the decoder's order.

    Args:
        text: names with commas between, or all-linear.
        projections: those that the model has.

    Raises:
        UsageError: a name that is no projection, or none at all.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all-linear"]:
        return tuple(projections)
    unknown = [name for name in names if name not in projections]
    if unknown or not names:
        raise UsageError(
            "adapter.targets names no projection of this model",
            expected=f"all-linear, or some of {','.join(projections)}",
            found=", ".join(unknown) or "nothing",
            do="for example --adapter.targets q_proj,k_proj,v_proj",
        )
    return tuple(name for name in projections if name in names)


def make_adapter(
    spec: DecoderSpec | GeneralSpec,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    seed: int,
    device: torch.device | str = "cpu",
) -> Adapter:
    """A new adapter that changes nothing yet; float32 leaves that require gradients."""
    matrices = {}
    for path, outputs, inputs in spec.adapted(targets):
        a_RI = (uniform((rank, inputs), seed, path) * 2 - 1) * inputs**-0.5
        b_OR = torch.zeros(outputs, rank)
        matrices[path] = (a_RI.to(device).requires_grad_(), b_OR.to(device).requires_grad_())
    return Adapter(rank, alpha, dropout, tuple(targets), matrices)


def adapter_size(spec: DecoderSpec | GeneralSpec, targets: Sequence[str], rank: int) -> int:
    """Trained parameters of an adapter."""
    return rank * sum(outputs + inputs for _, outputs, inputs in spec.adapted(targets))


def adapter_files(adapter: Adapter, base: str, spec: DecoderSpec | GeneralSpec) -> dict[str, Content]:
    """The files of an adapter as PEFT writes them, by name, under the names of the family's modules.

    `peft.PeftModel.from_pretrained` loads their folder. Where a fused module has adapters for some of its projections
    only, the file's metadata says for which.

    Args:
        adapter: its numbers are taken when the files are written; those of fused modules are put together here.
        base: the model that it was made for, a path or an id.
        spec: that model.
    """
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        **tree_settings(spec, adapter.targets, adapter.rank, adapter.alpha),
    }
    text = (json.dumps(config, indent=2) + "\n").encode()
    # One key alone, as safetensors writes several in any order, and equal adapters have equal bytes.
    whole = targets_of(spec, config["target_modules"]) == adapter.targets
    metadata = {"format": "pt"} if whole else {"targets": ",".join(adapter.targets)}
    return {
        CONFIG_FILE: (len(text), [text]),
        WEIGHTS_FILE: safetensors_file(dict(to_tree(spec, adapter.matrices)), metadata=metadata),
    }


def write_adapter(adapter: Adapter, folder: Path, base: str, spec: DecoderSpec | GeneralSpec) -> None:
    """Writes an adapter's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, chunks) in adapter_files(adapter, base, spec).items():
        with (folder / name).open("wb") as file:
            file.writelines(chunks)


def read_adapter(folder: Path, spec: DecoderSpec | GeneralSpec, device: torch.device | str = "cpu") -> Adapter:
    """Reads an adapter in PEFT's format.

    Raises:
        ModelError: files missing or broken, an option that is not plain LoRA, or shapes of another model.
    """
    try:
        config = read_json(folder / CONFIG_FILE)
        tensors = _tensors(folder / WEIGHTS_FILE)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        dropout = float(config.get("lora_dropout") or 0.0)
        if not (1 <= rank <= MOST_RANK and 0 < alpha < 1e9 and 0 <= dropout < 1):
            raise ValueError(f"r {rank}, lora_alpha {alpha}, lora_dropout {dropout}")
        wanted = config["target_modules"]
        targets = targets_of(spec, wanted)
        if (isinstance(wanted, str) and wanted != "all-linear") or not targets:
            raise ValueError(f"target_modules {str(wanted)[:200]!r}, where a list of projections should be")
        with safe_open(resolved_inside(folder / WEIGHTS_FILE), framework="pt") as file:
            ours = (file.metadata() or {}).get("targets", "").split(",")
        targets = tuple(name for name in targets if name in ours or ours == [""])
        expected = tree_settings(spec, targets, rank, alpha)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no readable adapter",
            expected=f"{CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT writes them",
            found=f"{type(error).__name__}: {error}",
            do="name the folder of an adapter",
        ) from None
    unsupported = [key for key in ("use_dora", "use_rslora") if config.get(key)]
    unsupported += [
        key for key in ("rank_pattern", "alpha_pattern") if config.get(key) not in (None, {}, expected[key])
    ]
    if config.get("peft_type") != "LORA" or unsupported:
        raise ModelError(
            f"{folder / CONFIG_FILE}: not a plain LoRA adapter",
            expected="peft_type LORA without " + ", ".join(unsupported or ["variants"]),
            found=str(config.get("peft_type")),
            do="use an adapter of plain LoRA",
        )
    adapter = make_adapter(spec, rank=rank, alpha=alpha, dropout=dropout, targets=targets, seed=0)
    load_matrices(adapter, from_tree(spec, tensors, targets, rank), folder / WEIGHTS_FILE)
    moved = {path: _leaves(pair, device) for path, pair in adapter.matrices.items()}
    return Adapter(rank, alpha, adapter.dropout, targets, moved)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ModelError: it is missing, damaged, or a link out of its folder.
    """
    try:
        return _tensors(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read",
            expected="a whole safetensors file",
            found=str(error)[:500],
            do="use another checkpoint or adapter",
        ) from None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(resolved_inside(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def load_matrices(adapter: Adapter, tensors: dict[str, Tensor], place: Path) -> None:
    """Copies tensors, named as PEFT does, into an adapter; names and shapes must be exactly the adapter's."""
    named = adapter.named()
    wrong = sorted(set(named) ^ set(tensors))
    wrong += [name for name in named if name in tensors and tensors[name].shape != named[name].shape]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{place}: tensor {name} does not fit this model ({len(wrong)} such tensors)",
            expected=f"shape {list(named[name].shape)}" if name in named else "no such tensor",
            found=f"shape {list(tensors[name].shape)}" if name in tensors else "nothing",
            do="the adapter was made for another model or other targets",
        )
    with torch.no_grad():
        for name, matrix in named.items():
            matrix.copy_(tensors[name])


def _leaves(pair: tuple[Tensor, Tensor], device: torch.device | str) -> tuple[Tensor, Tensor]:
    a_RI, b_OR = (matrix.detach().to(device).requires_grad_() for matrix in pair)
    return a_RI, b_OR
