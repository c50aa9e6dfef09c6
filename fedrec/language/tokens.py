"""Item texts as tokens: one table for the whole catalogue, and the texts that are put together of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedrec.core.errors import DataError
from fedrec.language.models import folder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TOKEN = -1
"""What stands in the table behind the end of an item's text."""

_PROBE = "a"


class Frame(NamedTuple):
    """The tokens that a model wants before and after a text, and the one that stands for a text without any."""

    before: Tensor
    after: Tensor
    nothing: int = 0


def token_table(digest: str, sentences: Sequence[str], width: int) -> Tensor:
    """The first `width` tokens of each sentence, int32 [sentences, width], `NO_TOKEN` behind the end of a shorter one.

    Raises ConfigError if the model is not here, DataError if its tokenizer cannot be read.
    """
    table = torch.full((len(sentences), width), NO_TOKEN, dtype=torch.int32)
    if not sentences:
        return table
    made = tokenizer_of(digest)(list(sentences), add_special_tokens=False, truncation=True, max_length=width)
    for row, tokens in enumerate(made["input_ids"]):
        table[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    return table


def table_problem(table: Tensor, vocabulary: int) -> str | None:
    """What is wrong with a table of tokens that came over the network, for a model that has so many; None: nothing."""
    if bool(((table >= vocabulary) | (table < NO_TOKEN)).any()):
        return f"a token that is none of the language model's {vocabulary}"
    return None


@lru_cache(maxsize=8)
def most_token(digest: str) -> int:
    """The largest token that a model's tokenizer has. Raises as `tokenizer_of`."""
    return max(tokenizer_of(digest).get_vocab().values())


def text_of(rows: Tensor, frame: Frame, longest: int) -> Tensor:
    """One text, int64 [tokens], of the tokens of some items [items, width], the first items first.

    What is beyond `longest` tokens, the frame among them, is cut off. No text is empty, for no model reads one.
    """
    words = rows[rows != NO_TOKEN].long()[: longest - len(frame.before) - len(frame.after)]
    text = torch.cat([frame.before.to(words.device), words, frame.after.to(words.device)])
    return text if len(text) else text.new_tensor([frame.nothing])


@lru_cache(maxsize=2)
def tokenizer_of(digest: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ConfigError if the model is not here, DataError if it has none to be read."""
    folder = folder_of(digest)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises whatever its many kinds of tokenizers raise
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{folder}: its tokenizer cannot be read ({reason}); expected tokenizer.json") from error


@lru_cache(maxsize=2)
def frame_of(digest: str) -> Frame:
    """What the tokenizer of a model puts before and after a text; for no text its end, else its padding, else 0."""
    tokenizer = tokenizer_of(digest)
    whole, bare = (list(tokenizer(_PROBE, add_special_tokens=added)["input_ids"]) for added in (True, False))
    place = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before, after = (torch.tensor(part, dtype=torch.int64) for part in (whole[:place], whole[place + len(bare) :]))
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return Frame(before, after, next(token for token in ends if token is not None))
