"""A causal language model reads the titles of a user's latest items and writes the next one.

Source: BIGRec (Bao et al., arXiv 2308.08434). What is trained is LoRA, by the cross-entropy of the next item's title
after a prompt that lists those of the history. Ranking grounds what is written: the likeliest title, token by token, is
embedded by the untrained model, as every item's title is (`encoder=language_model`), and items go by the distance.

Each text goes through the model alone and without padding, so that a user's result is the same to the bit, whoever is
worked out beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import MaxLen
from torch import Tensor
from typing_extensions import override

from fedrec.backbones.base import Advice, History, ScoreContext
from fedrec.backbones.dot import dot
from fedrec.backbones.text import TextBackbone, TextConfig
from fedrec.config.schema import RunConfig
from fedrec.core.registry import backbones
from fedrec.core.tensors import Tensors
from fedrec.language.causal import Causal, Pooling, causal_model, problem_of
from fedrec.language.models import folder_of
from fedrec.language.prompts import Prompt, alone, listed, prompt_of, title_of
from fedrec.language.tokens import frame_of

_LOGITS = 3
"""Numbers of each token of the vocabulary that are held for a gradient, for each token of a title."""

_MOST_LETTERS = 10_000

_FARTHEST = 4.0
"""The largest squared distance of two vectors of length one."""


@dataclass(frozen=True)
class TitleGeneratorConfig(TextConfig):
    """Configuration of `title_generator`.

    Attributes:
        before: Words of the prompt before the titles, which follow a line each, the oldest first.
        after: Words after them, right before what is written.
        pooling: What of a title's last hidden states is its vector: their `mean`, or the `last`.
    """

    name: Literal["title_generator"]
    before: Annotated[str, MaxLen(_MOST_LETTERS)]
    after: Annotated[str, MaxLen(_MOST_LETTERS)]
    pooling: Pooling


@backbones.register("title_generator")
class TitleGenerator(TextBackbone):
    """Score of an item: minus the squared distance of its vector from that of the title that the model writes."""

    config_class = TitleGeneratorConfig
    config: TitleGeneratorConfig
    advice = Advice(loss="own", lr=0.001, prefixes=True)
    own_loss = True

    @override
    def clashes(self, config: RunConfig) -> list[str]:
        own, found = self.config, list[str]()
        if config.embedding.name != "fixed":
            found.append(
                f"embedding={config.embedding.name}: backbone={own.name} looks written titles up among the items' "
                "vectors, and its loss moves none of them; give embedding=fixed"
            )
        names = ("model", "item_tokens", "pooling", "precision")
        same = {name: getattr(own, name) for name in names}
        if any(getattr(config.encoder, name, None) != value for name, value in same.items()):
            found.append(
                f"encoder={config.encoder.name}: what backbone={own.name} writes is compared with titles that the same "
                "model has read alike; give encoder=language_model, with backbone's {', '.join(names)}"
            )
        if config.reduction.name != "none":
            found.append(
                f"reduction={config.reduction.name}: backbone={own.name} compares vectors as the language model makes "
                "them; give reduction=none"
            )
        if config.base_table.norm != 1:
            found.append(
                f"base_table.norm={config.base_table.norm:g}: distances are of vectors of length one; "
                "give base_table.norm=1"
            )
        return found

    @override
    def misfits(self) -> list[str]:
        found, own = super().misfits(), self.config
        if problem := problem_of(folder_of(own.model)):
            return [*found, f"backbone.model: {problem}; backbone={own.name} takes a causal one"]
        around = len(self._prompt.opening) + len(self._prompt.closing)
        if own.length < (needed := around + 2 * own.item_tokens + 2):
            found.append(
                f"backbone.length={own.length}: the prompt's own words take {around} tokens, and a title that is read "
                f"and one that is written up to {own.item_tokens + 1} each; give at least {needed}"
            )
        return found

    @property
    def _prompt(self) -> Prompt:
        return prompt_of(self.config.model, self.config.before, self.config.after)

    @override
    def numbers_per_history(self, length: int) -> int:
        own, line = self.config, self.config.item_tokens + 1
        around = len(self._prompt.opening) + len(self._prompt.closing)
        tokens = min(own.length, around + (min(length, own.items) + 1) * line)
        return self.numbers_per_text(tokens) + _LOGITS * line * self._sizes.vocabulary

    @property
    def _model(self) -> Causal:
        return causal_model(self.config.model, self.lora, self.config.precision)

    def _asked(self, items: Tensor, tokens: Tensor) -> Tensor:
        """The prompt, int64 [tokens], for the latest of some items [n], the oldest first."""
        room = self.config.length - self.config.item_tokens - 1
        return listed(tokens[items[-self.config.items :]], self._prompt, room)

    @override
    def losses(
        self, shared: Tensors, private: Tensors, frozen: Tensors, history: History, ahead: Tensor, mask: Tensor
    ) -> Tensor:
        sequence, tokens = history.sequence(self.config.items), frozen["tokens"]
        reference = next(iter(shared.values()))
        copies, of_one = reference.ndim > 2, ahead.ndim == 1
        items, there, ahead, mask = (
            tensor.unsqueeze(0) if of_one else tensor for tensor in (sequence.items, sequence.mask, ahead, mask)
        )
        rows = []
        for user in range(len(ahead)):
            lora = {name: tensor[user] for name, tensor in shared.items()} if copies else shared
            prompt = self._asked(items[user][there[user]], tokens)
            found = [
                self._model.surprise(lora, prompt, title_of(tokens[item].cpu(), self._prompt)).to(reference)
                if counts
                else reference.new_zeros(())
                for item, counts in zip(ahead[user], mask[user].tolist(), strict=True)
            ]
            rows.append(torch.stack(found))
        losses = torch.stack(rows)
        return losses[0] if of_one else losses

    @override
    def user(self, shared: Tensors, private: Tensors, frozen: Tensors, history: History) -> Tensors:
        sequence = history.sequence(self.config.items)
        *leading, n = sequence.items.shape
        items, there = (tensor.reshape(-1, n) for tensor in (sequence.items, sequence.mask))
        copies = next(iter(shared.values())).ndim > 2
        states = sequence.vectors.new_zeros(len(items), self.dim)
        for user in range(len(items)):
            lora = {name: tensor[user] for name, tensor in shared.items()} if copies else shared
            written = self.written(lora, frozen, items[user][there[user]])
            states[user] = self._model.vector(alone(written, frame_of(self.config.model)), self.config.pooling)
        return {"state": states.reshape(*leading, self.dim)}

    def written(self, shared: Tensors, frozen: Tensors, items: Tensor) -> Tensor:
        """The title, int64 [tokens], that the model writes after those of some items [n], the oldest first."""
        asked = self._asked(items, frozen["tokens"])
        return self._model.write(shared, asked, self.config.item_tokens, self._prompt.line)

    @override
    def score(self, shared: Tensors, private: Tensors, item_vectors: Tensor, context: ScoreContext) -> Tensor:
        state = private["state"]
        lengths = item_vectors.square().sum(-1)
        distances = lengths + state.square().sum(-1, keepdim=True) - 2 * dot(state, item_vectors)
        # An item without text has no vector, and is as far away as can be.
        return -torch.where(lengths > 0, distances, _FARTHEST)
