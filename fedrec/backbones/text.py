"""What backbones share that read the texts of items by a language model with LoRA.

The model is on every machine already (`fedrec.language.models`) and is never sent; LoRA (Hu et al., ICLR 2022) in its
layers is all that is trained and travels in a round, and the tokens of the items' texts are sent once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from numpy.typing import NDArray
from pydantic import Field, Strict
from typing_extensions import override

from fedrec.backbones.base import Backbone
from fedrec.config.schema import RunConfig
from fedrec.core.bounds import LARGEST_START, MOST_HISTORY, MOST_LAYERS, MOST_WIDTH
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.registry import MemberConfig
from fedrec.core.tensors import Spec, TableSpec, Tensors
from fedrec.language.loading import Lora
from fedrec.language.models import DIGEST, Precision, Sizes, lora_spec, sizes_of, weights_bytes
from fedrec.language.tokens import most_token, table_problem, token_table

_HELD = 24
"""Vectors as wide as a hidden state that a layer holds for its gradient, of each token, about."""

_MOST_TOKENS = 8_192


@dataclass(frozen=True)
class TextConfig(MemberConfig):
    """Configuration of every backbone that reads texts by a language model.

    Attributes:
        model: The SHA-256 digest of the model's files, as `fedrec model` prints it.
        length: Tokens of a text, at most.
        item_tokens: Of an item's text, at most.
        items: Latest items that are read.
        precision: Of the model's weights; what is trained stays in float32.
        rank: Of LoRA.
        alpha: LoRA's products are multiplied by `alpha / rank`.
        modules: The ends of the names of the linear maps that get LoRA.
    """

    model: Annotated[str, Field(pattern=DIGEST)]
    length: Annotated[int, Ge(4), Le(_MOST_TOKENS)]
    item_tokens: Annotated[int, Ge(1), Le(_MOST_TOKENS)]
    items: Annotated[int, Ge(1), Le(MOST_HISTORY)]
    precision: Precision
    rank: Annotated[int, Ge(1), Le(MOST_WIDTH)]
    alpha: Annotated[float, Gt(0), Le(LARGEST_START)]
    modules: Annotated[
        tuple[Annotated[str, MinLen(1), MaxLen(200)], ...], Strict(False), MinLen(1), MaxLen(MOST_LAYERS)
    ]


class TextBackbone(Backbone):
    """A language model with LoRA, of which the member says what it makes of the items' texts."""

    config: Any  # a TextConfig
    reads_history = True

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What does not fit together in a configuration, a line each."""
        own, found = cast(TextConfig, config.backbone), list[str]()
        if config.base_table.start != "text":
            found.append(
                f"backbone={own.name} reads the items' texts, of which their vectors say nothing with "
                f"base_table.start={config.base_table.start}; give base_table.start=text"
            )
        if own.item_tokens > own.length:
            found.append(
                f"backbone.item_tokens={own.item_tokens}: a text of backbone.length={own.length} tokens has no room "
                "for so many of one item; give fewer"
            )
        made = cls(own, config.base_table.dim)
        try:
            found += made.clashes(config)
            _ = made.trained
            return found + made.misfits()
        except FedrecError as error:
            return [*found, *getattr(error, "problems", [f"backbone.model: {error}"])]

    def clashes(self, config: RunConfig) -> list[str]:
        """What of a configuration the member does not go with, a line each. Raises as `misfits`."""
        return []

    def misfits(self) -> list[str]:
        """What does not fit the model that is here, a line each. Raises FedrecError if it is not, or is damaged."""
        found, model, length = [], self._sizes, self.config.length
        if (most := most_token(self.config.model)) >= model.vocabulary:
            found.append(
                f"backbone.model: its tokenizer has the token {most}, and the model itself {model.vocabulary} of them; "
                "take a model with its own tokenizer"
            )
        if self.dim != model.width:
            found.append(
                f"base_table.dim={self.dim}: the hidden states of backbone.model have {model.width} numbers, and an "
                f"item's vector needs as many; give base_table.dim={model.width}, with reduction=none for vectors as "
                "the same model makes them"
            )
        if length > model.positions:
            found.append(
                f"backbone.length={length}: the language model reads texts of up to {model.positions} tokens; give "
                "that or less"
            )
        return found

    @property
    def lora(self) -> Lora:
        """What is put into the model."""
        return Lora(self.config.rank, self.config.alpha, self.config.modules)

    @cached_property
    def _sizes(self) -> Sizes:
        return sizes_of(self.config.model)

    @cached_property
    def trained(self) -> Spec:
        """All LoRA tensors."""
        return lora_spec(self.config.model, self.lora)

    @property
    @override
    def shared(self) -> Spec:
        return self.trained

    @property
    @override
    def private(self) -> Spec:
        return {}

    @property
    @override
    def layers(self) -> int:
        return self._sizes.layers

    @property
    @override
    def resident(self) -> int:
        return weights_bytes(self.config.model, self.config.precision)

    @override
    def require_here(self) -> None:
        if found := self.misfits():
            raise ConfigError(found)

    @override
    def numbers_per_history(self, length: int) -> int:
        return self.numbers_per_text(min(self.config.length, length * self.config.item_tokens))

    def numbers_per_text(self, tokens: int) -> int:
        """Numbers that the model holds at once for the gradient of a text of so many tokens, about."""
        sizes = self._sizes
        return tokens * sizes.layers * (_HELD * sizes.width + 3 * sizes.heads * tokens)

    @override
    def frozen(self, n_items: int) -> Spec:
        return {"tokens": TableSpec((n_items, self.config.item_tokens), "int32")}

    @override
    def init_texts(self, sentences: Sequence[str]) -> Tensors:
        return {"tokens": token_table(self.config.model, sentences, self.config.item_tokens)}

    @override
    def frozen_problem(self, frozen: Tensors) -> str | None:
        return table_problem(frozen["tokens"], self._sizes.vocabulary)

    @override
    def init_shared(self, rng: torch.Generator) -> Tensors:
        made: Tensors = {}
        for name, spec in sorted(self.trained.items()):
            tensor = spec.zeros()
            if name.endswith(".A"):
                bound = spec.shape[1] ** -0.5
                tensor.uniform_(-bound, bound, generator=rng)
            made[name] = tensor
        return made

    @override
    def init_private(self, seed: int, keys: NDArray[np.uint64]) -> Tensors:
        return {}
