"""A prompt that lists titles, a line each, and what is written after it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fedrec.core.errors import DataError
from fedrec.language.models import folder_of
from fedrec.language.tokens import NO_TOKEN, Frame, frame_of, text_of, tokenizer_of


class Prompt(NamedTuple):
    """The tokens around titles.

    Attributes:
        opening: What a model wants before a text, and the words before the titles.
        closing: The words after them.
        line: It ends a title.
        nothing: It stands for a text without any token.
    """

    opening: Tensor
    closing: Tensor
    line: int
    nothing: int


@lru_cache(maxsize=4)
def prompt_of(digest: str, before: str, after: str) -> Prompt:
    """The prompt of a model, with these words before and after the titles.

    Raises ConfigError if the model is not here, DataError if its tokenizer cannot be read or knows no end of a line.
    """
    lines = _tokens(digest, "\n")
    if not len(lines) or int(lines[-1]) == tokenizer_of(digest).unk_token_id:
        raise DataError(f"{folder_of(digest)}: its tokenizer has no token for the end of a line, which ends a title")
    frame = frame_of(digest)
    opening = torch.cat([frame.before, _tokens(digest, before)])
    return Prompt(opening, _tokens(digest, after), int(lines[-1]), frame.nothing)


def listed(rows: Tensor, prompt: Prompt, longest: int) -> Tensor:
    """A prompt, int64 [tokens], at least one, of titles' tokens [n, width] in their order.

    Of the titles no more is left than the last tokens that fit into `longest` altogether.
    """
    room = max(0, longest - len(prompt.opening) - len(prompt.closing))
    lines = torch.cat([prompt.opening.new_zeros(0), *(title_of(row, prompt) for row in rows.cpu())])
    text = torch.cat([prompt.opening, lines[max(0, len(lines) - room) :], prompt.closing])
    return text if len(text) else text.new_tensor([prompt.nothing])


def title_of(row: Tensor, prompt: Prompt) -> Tensor:
    """A title's tokens of its row [width] of the table of tokens, and the end of its line: int64 [1 to width + 1]."""
    words = row[row != NO_TOKEN].long()
    return torch.cat([words, words.new_tensor([prompt.line])])


def alone(row: Tensor, frame: Frame) -> Tensor:
    """The tokens of one title [width], as the model wants a text: int64 [tokens], at least one."""
    return text_of(row.unsqueeze(0), frame, len(row) + len(frame.before) + len(frame.after))


def _tokens(digest: str, text: str) -> Tensor:
    found = tokenizer_of(digest)(text, add_special_tokens=False)["input_ids"] if text else []
    return torch.tensor(list(found), dtype=torch.int64)
