"""A language model reads the texts of a user's latest items, and what it makes of them is the user's vector.

Source: RecFormer (Li et al., KDD 2023), whose text is put together of the items' own, the latest first; an item's
vector comes from the base table, which the same model makes (`encoder=sentence_transformer`, `reduction=none`). What is
trained, and travels, is LoRA (Hu et al., ICLR 2022) in the model's layers. The model itself is on every machine already
(`fedrec.language.models`) and is never sent; the items' tokens are sent once.

Each user's text goes through the model alone and without padding. So a user's vector is the same to the bit, whoever is
worked out beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from numpy.typing import NDArray
from pydantic import Field, Strict
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from fedrec.backbones.base import Advice, Backbone, History, ItemSequence, ScoreContext
from fedrec.backbones.dot import dot
from fedrec.backbones.sequence import SequenceBackbone
from fedrec.backbones.split import HIDDEN
from fedrec.config.schema import RunConfig
from fedrec.core.bounds import LARGEST_START, LONGEST_HALF_LIFE, MOST_HISTORY, MOST_LAYERS, MOST_WIDTH
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.registry import MemberConfig, backbones
from fedrec.core.tensors import Spec, TableSpec, Tensors
from fedrec.language.loading import Lora
from fedrec.language.models import (
    DIGEST,
    PRECISIONS,
    Precision,
    Sizes,
    layers_of_model,
    lora_spec,
    sizes_of,
    weights_bytes,
)
from fedrec.language.split import SplitModel
from fedrec.language.split import problems as split_problems
from fedrec.language.tokens import frame_of, table_problem, text_of, token_table

_HELD = 24
"""Vectors as wide as a hidden state that a layer holds for its gradient, of each token, about."""

_MOST_TOKENS = 8_192


@dataclass(frozen=True)
class LanguageModelConfig(MemberConfig):
    """Configuration of `language_model`.

    Attributes:
        model: The SHA-256 digest of the model's files, as `fedrec model` prints it.
        length: Tokens of a text, at most.
        item_tokens: Of an item's text, at most.
        items: Latest items that are read.
        pooling: Of the last hidden states: their `mean`, the `first` token's, or the `last` token's.
        scale: Scores are cosines times this number (where item vectors are of length one).
        mean: How much of a decaying mean of the items' vectors is added to the state of length one; 0: nothing.
        half_life: The items after which an item counts half as much in that mean.
        item_bias: Whether the last number of an item's vector is a bias of its score, and no state reads it.
        precision: Of the model's weights; what is trained stays in float32.
        rank: Of LoRA.
        alpha: LoRA's products are multiplied by `alpha / rank`.
        modules: The ends of the names of the linear maps that get LoRA.
        split: Layers that the client has before the server's; the last one is the client's too (null: all are).
    """

    name: Literal["language_model"]
    model: Annotated[str, Field(pattern=DIGEST)]
    length: Annotated[int, Ge(4), Le(_MOST_TOKENS)]
    item_tokens: Annotated[int, Ge(1), Le(_MOST_TOKENS)]
    items: Annotated[int, Ge(1), Le(MOST_HISTORY)]
    pooling: Literal["mean", "first", "last"]
    scale: Annotated[float, Gt(0), Le(LARGEST_START)]
    mean: Annotated[float, Ge(0), Le(LARGEST_START)]
    half_life: Annotated[float, Gt(0), Le(LONGEST_HALF_LIFE)]
    item_bias: bool
    precision: Precision
    rank: Annotated[int, Ge(1), Le(MOST_WIDTH)]
    alpha: Annotated[float, Gt(0), Le(LARGEST_START)]
    modules: Annotated[
        tuple[Annotated[str, MinLen(1), MaxLen(200)], ...], Strict(False), MinLen(1), MaxLen(MOST_LAYERS)
    ]
    split: Annotated[int, Ge(0), Le(MOST_LAYERS)] | None


@backbones.register("language_model")
class LanguageModel(Backbone):
    """Score of an item: the scaled dot product of its vector and the pooled last hidden state of the user's text."""

    config_class = LanguageModelConfig
    config: LanguageModelConfig
    reads_history = True
    advice = Advice(loss="bce", lr=0.001, prefixes=True)

    @classmethod
    def problems(cls, config: RunConfig) -> list[str]:
        """What does not fit together in a configuration, a line each."""
        own, dim = cast(LanguageModelConfig, config.backbone), config.base_table.dim
        found = SequenceBackbone.problems(config)
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
        made = cls(own, dim)
        try:
            if own.split is not None:
                found += split_problems(config, own.split, made._sizes.layers)
            _ = made.trained
            return found + made._misfits()
        except FedrecError as error:
            return [*found, *getattr(error, "problems", [f"backbone.model: {error}"])]

    def _misfits(self) -> list[str]:
        """What does not fit the model that is here, a line each. Raises FedrecError if it is not, or is damaged."""
        found, model, length = [], self._sizes, self.config.length
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
        """All LoRA tensors, also those that are the server's."""
        return lora_spec(self.config.model, self.lora)

    @cached_property
    @override
    def shared(self) -> Spec:
        middle = {} if self.split is None else self.split.middle
        return {name: spec for name, spec in self.trained.items() if name not in middle}

    @cached_property
    @override
    def split(self) -> SplitModel | None:
        own = self.config
        if own.split is None:
            return None
        sizes = self._sizes
        return SplitModel(
            own.model, self.lora, own.precision, own.split, sizes.layers, self.trained, self._text, own.length,
            sizes.width,
        )  # fmt: skip

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
        return weights_bytes(self.config.model)

    @override
    def require_here(self) -> None:
        if found := self._misfits():
            raise ConfigError(found)

    @override
    def numbers_per_history(self, length: int) -> int:
        tokens = min(self.config.length, length * self.config.item_tokens)
        if not tokens:
            return 0
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

    @override
    def user(self, shared: Tensors, private: Tensors, frozen: Tensors, history: History) -> Tensors:
        sequence = history.sequence(self.config.items)
        *leading, n = sequence.items.shape
        users = int(np.prod(leading))
        items, mask = (tensor.reshape(users, n) for tensor in (sequence.items, sequence.mask))
        own = next(iter(shared.values())).ndim > 2  # copies of each user
        texts = [self._text(row[there], frozen["tokens"]) for row, there in zip(items, mask, strict=True)]
        copies = [{name: tensor[user] for name, tensor in shared.items()} if own else shared for user in range(users)]
        last = self._last_hidden(texts, copies, private)
        states = [self._pooled(hidden) for hidden in last]
        dtype = sequence.vectors.dtype
        made = torch.stack(states).to(dtype) if states else sequence.vectors.new_zeros(0, self.dim)
        state = made.reshape(*leading, self.dim)[..., : self._width]
        if self.config.mean:
            state = state + self.config.mean * self._mean(sequence)
        state = self.config.scale * state
        if self.config.item_bias:
            state = torch.cat([state, torch.ones_like(state[..., :1])], -1)
        return {"state": state}

    @property
    def _width(self) -> int:
        return self.dim - self.config.item_bias

    def _text(self, items: Tensor, tokens: Tensor) -> Tensor:
        """The text, int64 [tokens], of the latest of some items [n], the oldest first."""
        return text_of(tokens[items[-self.config.items :].flip(0)], frame_of(self.config.model), self.config.length)

    def _last_hidden(self, texts: Sequence[Tensor], lora: Sequence[Tensors], private: Tensors) -> Iterator[Tensor]:
        """Of each text the model's last hidden states [tokens, width], with LoRA tensors of its own."""
        if self.split is not None:
            above = private[HIDDEN].reshape(len(texts), -1, self._sizes.width)
            for text, tensors, hidden in zip(texts, lora, above, strict=True):
                yield self.split.above(tensors, hidden[: len(text)])
            return
        dtype = PRECISIONS[self.config.precision]
        for text, tensors in zip(texts, lora, strict=True):
            device = next(iter(tensors.values())).device
            layers = layers_of_model(self.config.model, self.lora, self.config.precision, device)
            text = text.to(device).unsqueeze(0)
            given = {name: tensor.to(dtype) for name, tensor in tensors.items()}  # a ranking has them in float64
            yield layers.whole(given, text, torch.ones_like(text))[0]

    def _pooled(self, hidden: Tensor) -> Tensor:
        """Hidden states [tokens, width] pooled, of length one [width]."""
        hidden = hidden.to(torch.promote_types(torch.float32, hidden.dtype))
        pooled = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}[self.config.pooling]
        return normalize(pooled, dim=0)

    def _mean(self, sequence: ItemSequence) -> Tensor:
        """The mean of the items' vectors [..., width], whose weights halve with every `half_life` later items."""
        mask = sequence.mask
        later = mask.sum(-1, keepdim=True) - mask.cumsum(-1)
        weights = mask * torch.exp2(-later.to(sequence.vectors.dtype) / self.config.half_life)
        total = weights.sum(-1, keepdim=True).clamp(min=1e-9)
        # Not as a product of matrices, whose last bits depend on how many there are.
        return ((weights / total).unsqueeze(-1) * sequence.vectors[..., : self._width]).sum(-2)

    @override
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        return dot(private["state"], item_vectors)
