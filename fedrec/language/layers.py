"""A transformer in three parts: its bottom (embeddings and first layers), its middle, its top (last layer and norm).

A part is the model itself, run by its own `forward`, in which the layers of the other parts let the hidden states
through. So masks and positions are made as the model makes them, whatever its architecture, and the parts one after
another compute what the model computes, operation by operation.

Source of the partition: FELLRec (arXiv 2402.09959), "flexible storage". What is trained is LoRA (Hu et al., ICLR
2022), put in by the `peft` library; its tensors are arguments here, so that whoever calls decides whose they are.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from fedrec.core.errors import FedrecError
from fedrec.core.tensors import Spec, Tensors, spec_of

Part: TypeAlias = Literal["bottom", "middle", "top"]

PARTS: Final[tuple[Part, ...]] = ("bottom", "middle", "top")

_STACKS: Final = ("layers", "encoder.layer")
"""Where the layers are: of Llama, Gemma, Qwen and their kin; of BERT, RoBERTa and theirs."""

_LORA: Final = re.compile(r"\.lora_(A|B)\.\w+\.weight$")


class _Config(Protocol):
    hidden_size: int


class Layers:
    """A transformer with LoRA, cut below and above its middle.

    Attributes:
        tensors: The LoRA tensors by short names, such as `layer.0.self_attn.q_proj.A`.
        first: How many layers the bottom has.
        count: How many layers the model has.
        width: Numbers of a hidden state.
    """

    def __init__(self, model: nn.Module, first: int) -> None:
        """Cut a model.

        Args:
            model: A bare transformer (what `AutoModel` gives), in which `peft` may have put LoRA; of parts that are
                never run, the layers may be missing (`loading.py`). It is set to evaluation: nothing is dropped at
                random, and none of its own parameters wants a gradient.
            first: Layers of the bottom, at least 0; the top has one, so at most one less than there are.

        Raises FedrecError if the model is of no known style, or has too few layers.
        """
        self._stack = stack_of(model)
        self.count = len(cast(nn.ModuleList, model.get_submodule(self._stack)))
        if not 0 <= first < self.count:
            raise FedrecError(
                f"{type(model).__name__} has {self.count} layers, the last of which is its top: {first} first layers "
                f"are not between 0 and {self.count - 1}"
            )
        self.first = first
        self.width: int = cast(_Config, model.config).hidden_size
        self._long = lora_names(model, self._stack)
        self.tensors = lora_spec(model, self._long)
        model.eval().requires_grad_(False)
        self._views = {part: self._view(model, part) for part in PARTS}

    def to(self, device: torch.device) -> Layers:
        """The same, moved to a device; LoRA's own tensors, which are arguments, have no values and stay without."""
        for view in self._views.values():
            move = cast("Callable[[Callable[[Tensor], Tensor]], nn.Module]", view._apply)
            move(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
        return self

    def layers_of(self, part: Part) -> range:
        """Which of the model's layers a part has."""
        return layers_of(part, self.first, self.count)

    def names(self, part: Part) -> tuple[str, ...]:
        """The LoRA tensors of a part, in the order of their names."""
        layers = self.layers_of(part)
        return tuple(sorted(name for name in self.tensors if int(name.split(".")[1]) in layers))

    def parameters(self) -> list[Tensor]:
        """Those of the model itself, without LoRA, that are in this machine's memory."""
        found = {name: value for view in self._views.values() for name, value in view.named_parameters()}
        return [value for name, value in found.items() if not (value.is_meta or _LORA.search(name))]

    def weights(self) -> int:
        """How many numbers these have."""
        return sum(value.numel() for value in self.parameters())

    def _view(self, model: nn.Module, part: Part) -> nn.Module:
        """The model with the layers, embeddings and norm of other parts left out; its parameters are the model's."""
        view = _copied(model)
        parent = view
        for name in self._stack.split(".")[:-1]:
            inner = _copied(parent.get_submodule(name))
            setattr(parent, name, inner)
            parent = inner
        stack = self._stack.split(".")[-1]
        layers, held = cast(nn.ModuleList, parent.get_submodule(stack)), self.layers_of(part)
        setattr(parent, stack, nn.ModuleList([layer if i in held else Through() for i, layer in enumerate(layers)]))
        if part != "bottom" and hasattr(view, "embeddings"):
            view.embeddings = Through()
        if part != "top" and hasattr(view, "norm"):
            view.norm = Through()
        if hasattr(view, "pooler"):
            view.register_module("pooler", None)
        return view

    def bottom(self, tensors: Tensors, tokens: Tensor, mask: Tensor) -> Tensor:
        """Hidden states after the first layers.

        Args:
            tensors: The LoRA tensors of this part by their short names; others are not read.
            tokens: Whole numbers [texts, tokens].
            mask: 1 where there is a token, 0 behind a text's end [texts, tokens].

        Returns:
            [texts, tokens, width].
        """
        return self._run("bottom", tensors, mask, input_ids=tokens.long())

    def middle(self, tensors: Tensors, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [texts, tokens, width] after the middle, of those after the bottom. `tensors`: as `bottom`."""
        return self._run("middle", tensors, mask, inputs_embeds=hidden)

    def top(self, tensors: Tensors, hidden: Tensor, mask: Tensor) -> Tensor:
        """The model's last hidden states [texts, tokens, width], of those after the middle. `tensors`: as `bottom`."""
        return self._run("top", tensors, mask, inputs_embeds=hidden)

    def whole(self, tensors: Tensors, tokens: Tensor, mask: Tensor) -> Tensor:
        """The model's last hidden states [texts, tokens, width]."""
        return self.top(tensors, self.middle(tensors, self.bottom(tensors, tokens, mask), mask), mask)

    def _run(self, part: Part, tensors: Tensors, mask: Tensor, **given: Tensor) -> Tensor:
        swapped = {self._long[name]: tensors[name] for name in self.names(part)}
        arguments = {**given, "attention_mask": mask.long()}
        return cast(Tensor, functional_call(self._views[part], swapped, kwargs=arguments).last_hidden_state)


class Through(nn.Module):
    """Stands where a part has nothing of its own: gives back the hidden states."""

    @override
    def forward(
        self, hidden_states: Tensor | None = None, *_: object, inputs_embeds: Tensor | None = None, **__: object
    ) -> Tensor:
        hidden = inputs_embeds if hidden_states is None else hidden_states
        assert hidden is not None, "hidden states are let through"
        return hidden


def _copied(module: nn.Module) -> nn.Module:
    """A module with the same parts, of which one may be exchanged without the other noticing."""
    other = copy.copy(module)
    other.__dict__["_modules"] = dict(module._modules)
    return other


def stack_of(model: nn.Module) -> str:
    """The name of the list of a transformer's layers. Raises FedrecError if it has none that is known."""
    for name in _STACKS:
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return name
    raise FedrecError(
        f"{type(model).__name__} cannot be cut into parts: its layers are neither at {' nor at '.join(_STACKS)}; "
        "choose a model of the style of BERT or of Llama"
    )


def lora_names(model: nn.Module, stack: str) -> dict[str, str]:
    """The names of a model's LoRA tensors, by short ones that begin with the layer; `stack`: where its layers are."""
    found = [name for name, _ in model.named_parameters() if _LORA.search(name) is not None]
    return {"layer" + _LORA.sub(r".\1", name.removeprefix(stack)): name for name in found}


def lora_spec(model: nn.Module, names: Mapping[str, str]) -> Spec:
    """The specification of a model's LoRA tensors by their short names."""
    parameters = dict(model.named_parameters())
    return spec_of({short: parameters[name] for short, name in names.items()})


def layers_of(part: Part, first: int, count: int) -> range:
    """The layers of a part of a model of `count` layers whose bottom has the `first`."""
    bounds = {"bottom": (0, first), "middle": (first, count - 1), "top": (count - 1, count)}
    return range(*bounds[part])
