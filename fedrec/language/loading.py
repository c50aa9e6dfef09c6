"""A transformer from a folder: only the parts that are held here are read, by name, from its safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fedrec.core.errors import FedrecError
from fedrec.language.layers import PARTS, Layers, Part, Through, layers_of, stack_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Lora:
    """The corrections that are trained.

    Attributes:
        rank: Rows of A and columns of B.
        alpha: They are scaled by `alpha / rank`.
        targets: The last names of the modules that get one, in every layer.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def put_into(self, model: nn.Module) -> None:
        """Put them into a model. Raises FedrecError if it has no such modules."""
        from peft import LoraConfig, inject_adapter_in_model

        names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if missing := sorted(set(self.targets) - names):
            raise FedrecError(f"{type(model).__name__} has no modules called {missing}; it has {sorted(names)}")
        config = LoraConfig(
            r=self.rank, lora_alpha=cast(int, self.alpha), lora_dropout=0.0, target_modules=list(self.targets)
        )
        inject_adapter_in_model(config, model)


def outline(config: PretrainedConfig, lora: Lora, first: int) -> Layers:
    """The parts of a model without its weights: the names and shapes of what is trained, at no cost of memory."""
    return Layers(_empty(config, lora, PARTS, first), first)


def loaded(
    folder: Path,
    lora: Lora,
    first: int,
    parts: Collection[Part] = PARTS,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> Layers:
    """Read parts of a model.

    Args:
        folder: With its `config.json` and its weights as safetensors.
        lora: What is put in. The model's own tensors of LoRA have no meaning: `Layers` takes them as arguments.
        first: Layers of the bottom.
        parts: Those that are read; of the others only that they exist is known.
        dtype: Of the weights.
        attention: The implementation of attention, by transformers' name.

    Raises FedrecError if the folder has no such model, or it lacks weights.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FedrecError(f"{folder}: no configuration of a transformer can be read there: {error}") from None
    config._attn_implementation = attention
    model = _empty(config, lora, parts, first)
    wanted = {name: value for name, value in model.state_dict().items() if value.is_meta and ".lora_" not in name}
    found = dict(_read(folder, {name.replace(".base_layer.", "."): name for name in wanted}, model))
    if missing := sorted(wanted.keys() - found.keys()):
        raise FedrecError(f"{folder}: the weights lack {len(missing)} tensors of {type(model).__name__}: {missing[:3]}")
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise FedrecError(f"{folder}: {name} is {tuple(value.shape)}, expected {tuple(wanted[name].shape)}")
    model.load_state_dict({name: value.to(dtype) for name, value in found.items()}, strict=False, assign=True)
    return Layers(model, first)


def _empty(config: PretrainedConfig, lora: Lora, parts: Collection[Part], first: int) -> nn.Module:
    """A model without weights, which has only what some parts need. Tensors that are no weights have their values."""
    from accelerate import init_empty_weights
    from transformers import AutoModel

    with init_empty_weights(include_buffers=False):
        model = cast(nn.Module, AutoModel.from_config(config))  # type: ignore[no-untyped-call]
        lora.put_into(model)
    stack = cast(nn.ModuleList, model.get_submodule(stack_of(model)))
    held = {layer for part in parts for layer in layers_of(part, first, len(stack))}
    for layer in range(len(stack)):
        if layer not in held:
            stack[layer] = Through()
    for name, part in (("embeddings", "bottom"), ("embed_tokens", "bottom"), ("norm", "top")):
        if hasattr(model, name) and part not in parts:
            setattr(model, name, Through())
    if hasattr(model, "pooler"):
        model.register_module("pooler", None)
    return model


def _read(folder: Path, wanted: Mapping[str, str], model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of these names, each with what it is called in the model.

    A file of a model with a head has them under the bare model's prefix.
    """
    from safetensors import safe_open

    prefix = cast(str, model.base_model_prefix) + "."
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                if (ours := wanted.get(name) or wanted.get(name.removeprefix(prefix))) is not None:
                    yield ours, file.get_tensor(name)


def weight_files(folder: Path) -> list[Path]:
    """Where the weights of a model are, all of them right in its folder.

    Raises FedrecError if there are none, or an index is none or names a file that the model's digest does not cover.
    """
    if (one := folder / _ONE_FILE).is_file():
        return [one]
    if not (index := folder / _INDEX).is_file():
        raise FedrecError(f"{folder}: neither {_ONE_FILE} nor {_INDEX} is there; save the model with `save_pretrained`")
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FedrecError(f"{index}: it is no index of weights: {error}") from None
    for name in names:
        if Path(name).name != name or name.startswith(".") or not name.endswith(_WEIGHTS):
            raise FedrecError(f"{index}: it names {name[:80]!r}, expected *{_WEIGHTS} right in the folder")
    return [folder / name for name in names]
