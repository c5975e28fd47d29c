"""transformers' model without its weights, and what can be read off it before any is loaded.

    config ─▶ skeleton: matrices on torch's meta device (shapes alone), buffers and small vectors as they are made
           ─▶ traced with weights of zero, one layer of each kind ─▶ which linears are called as modules, once a token

Some code reads ``linear.weight`` itself (Mamba's dt_proj): such a weight stays as it is in the file. That is found by
looking, not from a table.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from strop.errors import ModelError
from strop.model.general.library import broken, quiet, read_their_config, require_known
from strop.model.general.spec import GeneralSpec, Linear, context_of

# Weights that cannot lie in NF4, as a share of those that do, beyond which the path makes no sense.
_MOST_LEFT = 0.25
_TRACED_TOKENS = 6
_RECURRENT_LAYERS = ("linear_attention", "mamba", "mamba2", "conv", "recurrent")
# Ropes whose angles depend on the longest document beside.
_LENGTH_ROPES = ("dynamic", "longrope")
# Modules that PEFT refuses to adapt, as their kernels read the weight: peft.tuners.tuners_utils.
_NOT_IN_PEFT = dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1"), ("out_proj",))


class Skeleton(NamedTuple):
    """A model without weights.

    Args:
        model: transformers' model for causal language modelling.
        base: the path of its part below the head.
        layers_path: where its list of layers is.
    """

    model: Any
    base: str
    layers_path: str

    @property
    def below_head(self) -> Any:
        """That part."""
        return self.model.get_submodule(self.base)

    @property
    def layers(self) -> nn.ModuleList:
        """Its layers."""
        found = self.model.get_submodule(self.layers_path)
        assert isinstance(found, nn.ModuleList), "found as one"
        return found


def spec_of(config: Mapping[str, Any], place: Path) -> GeneralSpec:
    """The facts of a model.

    Raises:
        ModelError: transformers is not there, does not know it or cannot make it, or it cannot be tuned in NF4.
    """
    return _spec_of(json.dumps(config, sort_keys=True), place)


@functools.lru_cache(maxsize=8)
def _spec_of(text: str, place: Path) -> GeneralSpec:
    config = json.loads(text)
    kind = require_known(config, place)
    reason: ModelError | None = None
    for attention in ("sdpa", "eager"):  # transformers' own order; some models have the second alone
        try:
            skeleton = make_skeleton(config, place, attention)
            everything = frozenset(path for path, _, _ in linear_modules(skeleton.model))
            # First as if all linears were called: fused experts cannot always be run over weights of zero.
            _read_spec(skeleton, _Traced(everything, everything), kind, attention, place)
            traced = _trace(skeleton)
        except ModelError as error:
            reason = error
        except Exception as error:  # noqa: BLE001 # theirs raise anything: a cap of scores, a missing library
            reason = broken(place, error)
        else:
            return _read_spec(skeleton, traced, kind, attention, place)
    assert reason is not None, "both were tried"
    raise reason


def make_skeleton(config: Mapping[str, Any], place: Path, attention: str) -> Skeleton:
    """The model of a config, its matrices on the meta device.

    Raises:
        ModelError: transformers cannot make it, or its parts are not where they are looked for.
    """
    kind = require_known(config, place)
    theirs = read_their_config(config, kind, place)
    theirs.use_cache = False
    with quiet():
        from transformers import AutoModelForCausalLM

        try:
            with _EmptyOnMeta():
                model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    theirs, trust_remote_code=False, attn_implementation=attention, dtype=torch.float32
                )
        except Exception as error:  # noqa: BLE001 # theirs raise anything
            raise broken(place, error) from None
    model.eval()
    model.requires_grad_(False)
    base = _base_of(model)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if not base or not all(hasattr(end, "weight") for end in ends):
        raise _unlike(place, kind, "a model below a head, with an embedding")
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise _unlike(place, kind, "a list of layers")
    path, _ = max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    return Skeleton(model, base, path)


def linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Every module that is a linear map of its input, with its path and whether its weight is stored transposed."""
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and _is_linear(module, transposed=False):
            yield name, module, False
        elif isinstance(module, Conv1D) and _is_linear(module, transposed=True):
            yield name, module, True


def kind_of(layer: nn.Module) -> tuple[Any, ...]:
    """What two layers have in common that compute the same with other weights."""
    modules = tuple((name, type(module)) for name, module in layer.named_modules())
    return modules, tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def zero_weights(module: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Gives what lies on the meta device numbers that take no memory: one zero, seen as often as there are elements.

    Args:
        module: whose parameters and buffers are filled; all others are moved.
        device: where to.
        dtype: of all floating-point numbers.
    """
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(_zeros(parameter, device, dtype), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _zeros(buffer, device, dtype) if buffer.is_meta else buffer.to(device)


def _zeros(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Numbers for a tensor of the meta device; any other's own."""
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    if tensor.is_meta:
        return torch.zeros((), dtype=kind, device=device).expand(tensor.shape)
    return tensor.detach().to(device, kind)


def shared_names(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter by the first of its names → all its names: a tied head is one with its embedding."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {same[0]: same for same in names.values()}


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    return name in inspect.signature(function).parameters


class _EmptyOnMeta(TorchFunctionMode):
    """torch.empty, of which modules make their weights, makes no memory; what is computed from numbers is made."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _Traced(NamedTuple):
    """Paths of linears that were called, and of those that were called with a row a token."""

    called: frozenset[str]
    by_token: frozenset[str]


def _trace(skeleton: Skeleton) -> _Traced:
    """Runs one layer of each kind over a few tokens."""
    kinds = first_of_kinds(skeleton)
    trimmed = with_layers(skeleton, [*kinds]).model
    zero_weights(trimmed)
    called, by_token = set(), set()

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            called.add(path)
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].shape[:-1].numel() == _TRACED_TOKENS:
                by_token.add(path)

        return hook

    for path, module, _ in linear_modules(trimmed):
        module.register_forward_pre_hook(note(path))
    tokens_1T = torch.ones(1, _TRACED_TOKENS, dtype=torch.int64)
    with torch.no_grad(), quiet():
        trimmed.get_submodule(skeleton.base)(input_ids=tokens_1T, use_cache=False)
    firsts = list(kinds)

    def everywhere(paths: set[str]) -> frozenset[str]:
        found = set()
        for path in paths:
            rest = path.removeprefix(f"{skeleton.layers_path}.")
            if rest == path:
                found.add(path)
                continue
            position, _, within = rest.partition(".")
            found |= {f"{skeleton.layers_path}.{i}.{within}" for i in kinds[firsts[int(position)]]}
        return frozenset(found)

    return _Traced(everywhere(called), everywhere(by_token))


def with_layers(skeleton: Skeleton, layers: Sequence[int]) -> Skeleton:
    """A copy of the model that has these of its layers alone, any of them more than once.

    What lies on the meta device costs nothing to copy.
    """
    parent_path, _, name = skeleton.layers_path.rpartition(".")
    parent = skeleton.model.get_submodule(parent_path)
    whole = parent._modules[name]
    parent._modules[name] = nn.ModuleList()
    try:
        model = copy.deepcopy(skeleton.model)
    finally:
        parent._modules[name] = whole
    chosen = nn.ModuleList(copy.deepcopy(whole[index]) for index in layers)
    model.get_submodule(parent_path)._modules[name] = chosen
    return Skeleton(model, skeleton.base, skeleton.layers_path)


def first_of_kinds(skeleton: Skeleton) -> dict[int, list[int]]:
    """The first layer of each kind → all layers of its kind."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for index, layer in enumerate(skeleton.layers):
        kinds.setdefault(kind_of(layer), []).append(index)
    return {same[0]: same for same in kinds.values()}


def _read_spec(skeleton: Skeleton, traced: _Traced, kind: str, attention: str, place: Path) -> GeneralSpec:
    model, config = skeleton.model, skeleton.model.config
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    linears, inside = [], set()
    for path, module, transposed in linear_modules(model):
        if module is head or path not in traced.called:
            continue
        rows, columns = module.weight.shape  # type: ignore[misc]
        outputs, inputs = (columns, rows) if transposed else (rows, columns)
        adapted = path in traced.by_token and path.rpartition(".")[2] not in _NOT_IN_PEFT.get(kind, ())
        linears.append(Linear(path, outputs, inputs, module.bias is not None, transposed, adapted))
        inside |= {f"{path}.weight", f"{path}.bias"}
    ends = {f"{names[embedding]}.weight", f"{names[head]}.weight"}
    others = {name: p for name, p in model.named_parameters() if name not in inside and name not in ends}
    looked_up = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    _check_share(linears, {name: p for name, p in others.items() if name not in looked_up}, kind, place)
    vocabulary, hidden = head.weight.shape
    return GeneralSpec(
        family=f"{kind} (general path)",
        vocabulary=vocabulary,
        hidden=hidden,
        layers=len(skeleton.layers),
        layers_path=skeleton.layers_path,
        context=context_of(config.to_dict()),
        linears=tuple(linears),
        embedding=names[embedding],
        head=names[head],
        tied_head=head.weight is embedding.weight,
        other_weights=sum(parameter.numel() for parameter in others.values()),
        attention=attention,
        packs=_packs(skeleton),
        windows=_windows(config.to_dict()),
    )


def _check_share(linears: Sequence[Linear], others: Mapping[str, nn.Parameter], kind: str, place: Path) -> None:
    """Refuses models of which too much would stay in 16 or 32 bits: fused experts above all."""
    quantized = sum(linear.outputs * linear.inputs for linear in linears)
    left = {name: parameter.numel() for name, parameter in others.items() if parameter.ndim > 1}
    if sum(left.values()) <= _MOST_LEFT * quantized and any(linear.adapted for linear in linears):
        return
    largest = max(left, key=lambda name: left[name], default="nothing")
    shape = list(others[largest].shape) if left else []
    what = "experts in one parameter" if left and len(shape) > 2 else "matrices that are no linear modules"
    raise ModelError(
        f"{place}: {kind} models cannot be tuned in NF4 by the general path",
        expected="nearly all weights in linear modules, which can be quantised and adapted",
        found=f"{sum(left.values()):,} weights outside them, beside {quantized:,} inside: {what}, "
        f"the largest {largest} {shape}",
        do="use a model that `strop models` lists (mixture-of-experts of Mixtral's and Qwen 3's kind are), or "
        "docs/add-a-family.md",
    )


def _base_of(model: Any) -> str:
    """The path of what the model calls below its head; "" where it is not found."""
    inner = model.get_decoder()
    paths = [name for name, module in model.named_modules() if module is inner and module is not model]
    prefix = str(model.base_model_prefix)
    return paths[0] if paths else prefix if prefix in model._modules else ""


def _packs(skeleton: Skeleton) -> bool:
    """Whether positions should tell the documents of a pack apart; the loaded weights are tried as well."""
    model = skeleton.model
    text = json.dumps(model.config.to_dict(), default=str)
    stateful = bool(getattr(model, "_is_stateful", False)) or any(f'"{name}"' in text for name in _RECURRENT_LAYERS)
    lengths = any(f'"rope_type": "{name}"' in text or f'"type": "{name}"' in text for name in _LENGTH_ROPES)
    return takes(skeleton.below_head.forward, "position_ids") and not stateful and not lengths


def _windows(config: Mapping[Any, Any]) -> bool:
    """Whether a config names a window, or chunks that attention is cut into."""
    return any(
        _windows(value) if isinstance(value, dict) else bool(value) and ("window" in str(key) or "chunk" in str(key))
        for key, value in config.items()
    )


def _is_linear(module: nn.Module, *, transposed: bool) -> bool:
    """Whether a module is x Wᵀ + b and nothing else: of subclasses it is tried with a small weight."""
    if type(module) is nn.Linear:
        return True
    trial = copy.copy(module)
    generator = torch.Generator().manual_seed(1)
    weight_OI, bias_O, x_TI = (torch.randn(shape, generator=generator) for shape in ((3, 4), (3,), (2, 4)))
    bias = None if getattr(module, "bias", None) is None else bias_O
    stored = weight_OI.T.contiguous() if transposed else weight_OI
    trial.__dict__["_parameters"] = {"weight": stored, "bias": bias}
    for name in ("out_features", "nf"):
        if name in trial.__dict__:
            trial.__dict__[name] = 3
    try:
        found: Tensor = trial(x_TI)
    except Exception:  # noqa: BLE001 # theirs raise anything
        return False
    return found.shape == (2, 3) and torch.allclose(found, nn.functional.linear(x_TI, weight_OI, bias), atol=1e-5)


def _unlike(place: Path, kind: str, what: str) -> ModelError:
    return ModelError(
        f"{place}: {kind} models are not built as the general path expects",
        expected=what,
        found="nothing like it in transformers' model",
        do="use a model that `strop models` lists; docs/add-a-family.md says how to add one",
    )
