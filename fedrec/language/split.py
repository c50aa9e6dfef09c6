"""A language model of which the server holds the middle, and what of a configuration does not go with that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.split import PLAIN, Split, clashes
from fedrec.config.schema import RunConfig
from fedrec.core.tensors import Spec, Tensors
from fedrec.language.layers import Layers, Part, layers_of
from fedrec.language.loading import Lora
from fedrec.language.models import PRECISIONS, Precision, layers_of_model


@dataclass(frozen=True)
class SplitModel(Split):
    """The parts of a language model with LoRA.

    Attributes:
        digest: Of the model.
        lora: What is trained of it.
        precision: Of its weights.
        first: Layers below the middle; above it is one.
        count: Layers of the model.
        tensors: All that is trained.
        text: Tokens int64 [tokens] of items [n], and of the catalogue's table of tokens.
    """

    digest: str
    lora: Lora
    precision: Precision
    first: int
    count: int
    tensors: Spec
    text: Callable[[Tensor, Tensor], Tensor]
    length: int
    width: int

    def _of(self, part: Part) -> Spec:
        layers = layers_of(part, self.first, self.count)
        return {name: spec for name, spec in self.tensors.items() if int(name.split(".")[1]) in layers}

    @property
    def lower(self) -> Spec:  # type: ignore[override]
        """As in `Split`."""
        return self._of("bottom")

    @property
    def upper(self) -> Spec:  # type: ignore[override]
        """As in `Split`."""
        return self._of("top")

    @property
    def middle(self) -> Spec:  # type: ignore[override]
        """As in `Split`."""
        return self._of("middle")

    def _layers(self, part: Part) -> Layers:
        """Of the model no more than a stage needs."""
        return layers_of_model(self.digest, self.lora, self.precision, torch.device("cpu"), self.first, (part,))

    @override
    def below(self, shared: Tensors, frozen: Tensors, items: Tensor) -> Tensor:
        text = self.text(items, frozen["tokens"]).unsqueeze(0)
        return self._layers("bottom").bottom(self._cast(shared), text, torch.ones_like(text))[0]

    @override
    def states(self, frozen: Tensors, items: Tensor) -> int:
        return len(self.text(items, frozen["tokens"]))

    @override
    def between(self, middle: Tensors, hidden: Tensor) -> Tensor:
        hidden = hidden.to(PRECISIONS[self.precision]).unsqueeze(0)
        return self._layers("middle").middle(
            self._cast(middle), hidden, torch.ones(hidden.shape[:2], dtype=torch.int64)
        )[0]

    def above(self, shared: Tensors, hidden: Tensor) -> Tensor:
        """The model's last hidden states [tokens, width] of those above the middle."""
        hidden = hidden.to(PRECISIONS[self.precision]).unsqueeze(0)
        return self._layers("top").top(self._cast(shared), hidden, torch.ones(hidden.shape[:2], dtype=torch.int64))[0]

    def _cast(self, tensors: Tensors) -> Tensors:
        return {name: tensor.to(PRECISIONS[self.precision]) for name, tensor in tensors.items()}


def problems(config: RunConfig, first: int, layers: int) -> list[str]:
    """What does not go with a middle on the server, one line each."""
    asked, found = f"backbone.split={first}", list[str]()
    if first > layers - 2:
        found.append(
            f"{asked}: the language model has {layers} layers, the last of which is the client's too, so that nothing "
            f"is left for the server; give at most {layers - 2}, or backbone.split=null"
        )
    found += clashes(asked, {family: getattr(config, family).name for family in PLAIN})
    if config.federation.over_sampling:
        found.append(
            f"{asked} with federation.over_sampling={config.federation.over_sampling:g}: a round has three stages, and "
            "who takes part in the first is waited for in all; give federation.over_sampling=0"
        )
    return found
