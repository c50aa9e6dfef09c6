"""Titles as a causal language model of this machine's register reads them, without any training.

Source: BIGRec (Bao et al., arXiv 2308.08434), which looks up what a model has written among such vectors of all items:
`backbone=title_generator`. Each title goes through the model alone, so that its vector is that of the same title when
it is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from pydantic import Field
from typing_extensions import override

from fedrec.core.registry import MemberConfig, encoders
from peft_embeddings.encoders.base import Progress, TextEncoder, TextVectors

_BETWEEN = 100  # titles between two reports of progress


@dataclass(frozen=True)
class LanguageModelEncoderConfig(MemberConfig):
    """Configuration of `language_model`.

    Attributes:
        model: The SHA-256 digest of the model's files, as `fedrec model` prints it.
        item_tokens: Tokens of a title that are read, at most.
        pooling: What of its last hidden states is its vector: their `mean`, or the `last`.
        precision: Of the model's weights.
    """

    name: Literal["language_model"]
    model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    item_tokens: Annotated[int, Ge(1), Le(8_192)]
    pooling: Literal["mean", "last"]
    precision: Literal["float32", "bfloat16", "float64"]


@encoders.register("language_model")
class LanguageModelEncoder(TextEncoder):
    """Vectors of length one [items, width of the model], on CUDA where there is any."""

    config_class = LanguageModelEncoderConfig
    config: LanguageModelEncoderConfig

    @override
    def fingerprint(self) -> str:
        config = self.config
        told = [config.name, config.model, config.item_tokens, config.pooling, config.precision]
        return json.dumps([*told, version("transformers")])

    @override
    def encode(self, sentences: Sequence[str], progress: Progress) -> TextVectors:
        import torch

        from fedrec.language.causal import fastest, read_causal
        from fedrec.language.models import PRECISIONS, folder_of
        from fedrec.language.prompts import alone
        from fedrec.language.tokens import frame_of, token_table

        config, digest = self.config, self.config.model
        table, frame = token_table(digest, sentences, config.item_tokens), frame_of(digest)
        device = fastest()
        model = read_causal(folder_of(digest), None, PRECISIONS[config.precision], device)
        made: list[torch.Tensor] = []
        for row, sentence in enumerate(sentences):
            if row % _BETWEEN == 0:
                progress(f"reading titles on {device}", row, len(sentences))
            vector = model.vector(alone(table[row], frame), config.pooling).float().cpu()
            made.append(vector if sentence.strip() else torch.zeros_like(vector))
        progress(f"reading titles on {device}", len(sentences), len(sentences))
        return np.stack([vector.numpy() for vector in made])
