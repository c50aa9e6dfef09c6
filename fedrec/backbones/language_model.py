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
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from fedrec.backbones.base import Advice, History, ItemSequence, ScoreContext
from fedrec.backbones.dot import dot
from fedrec.backbones.sequence import SequenceBackbone
from fedrec.backbones.split import HIDDEN
from fedrec.backbones.text import TextBackbone, TextConfig
from fedrec.config.schema import RunConfig
from fedrec.core.bounds import LARGEST_START, LONGEST_HALF_LIFE, MOST_LAYERS
from fedrec.core.registry import backbones
from fedrec.core.tensors import Spec, Tensors
from fedrec.language.models import PRECISIONS, layers_of_model
from fedrec.language.split import SplitModel
from fedrec.language.split import problems as split_problems
from fedrec.language.tokens import frame_of, text_of


@dataclass(frozen=True)
class LanguageModelConfig(TextConfig):
    """Configuration of `language_model`.

    Attributes:
        pooling: Of the last hidden states: their `mean`, the `first` token's, or the `last` token's.
        scale: Scores are cosines times this number (where item vectors are of length one).
        mean: How much of a decaying mean of the items' vectors is added to the state of length one; 0: nothing.
        half_life: The items after which an item counts half as much in that mean.
        item_bias: Whether the last number of an item's vector is a bias of its score, and no state reads it.
        split: Layers that the client has before the server's; the last one is the client's too (null: all are).
    """

    name: Literal["language_model"]
    pooling: Literal["mean", "first", "last"]
    scale: Annotated[float, Gt(0), Le(LARGEST_START)]
    mean: Annotated[float, Ge(0), Le(LARGEST_START)]
    half_life: Annotated[float, Gt(0), Le(LONGEST_HALF_LIFE)]
    item_bias: bool
    split: Annotated[int, Ge(0), Le(MOST_LAYERS)] | None


@backbones.register("language_model")
class LanguageModel(TextBackbone):
    """Score of an item: the scaled dot product of its vector and the pooled last hidden state of the user's text."""

    config_class = LanguageModelConfig
    config: LanguageModelConfig
    advice = Advice(loss="bce", lr=0.001, prefixes=True)

    @override
    def clashes(self, config: RunConfig) -> list[str]:
        found, first = SequenceBackbone.problems(config), self.config.split
        return found + ([] if first is None else split_problems(config, first, self._sizes.layers))

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
            own.model, self.lora, own.precision, own.split, sizes.layers, self.trained, self.text, own.length,
            sizes.width,
        )  # fmt: skip

    @override
    def user(self, shared: Tensors, private: Tensors, frozen: Tensors, history: History) -> Tensors:
        sequence = history.sequence(self.config.items)
        *leading, n = sequence.items.shape
        users = int(np.prod(leading))
        items, mask = (tensor.reshape(users, n) for tensor in (sequence.items, sequence.mask))
        own = next(iter(shared.values())).ndim > 2  # copies of each user
        texts = [self.text(row[there], frozen["tokens"]) for row, there in zip(items, mask, strict=True)]
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

    def text(self, items: Tensor, tokens: Tensor) -> Tensor:
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
