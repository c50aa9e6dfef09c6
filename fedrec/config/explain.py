"""The words of configuration errors: what a type accepts, what a value is, and which legal key is near a wrong one."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic.fields import FieldInfo

from fedrec.core.registry import FAMILIES

_PLAIN: Mapping[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}
_LONGEST = 60


def expected(hint: Any) -> str:
    """What a field of this type accepts: `an integer >= 1`, `bpr or bce`, `a path or null`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return expected(arguments[0]) + _limits(arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin in (tuple, list, set, frozenset, Sequence):
        elements = [argument for argument in arguments if argument is not Ellipsis]
        return f"a list of ({', '.join(expected(element) for element in elements)})"
    if origin in (dict, Mapping):
        return f"a mapping from ({expected(arguments[0])}) to ({expected(arguments[1])})"
    return str(_PLAIN.get(hint) or getattr(hint, "__name__", hint))


def _limits(metadata: Sequence[Any]) -> str:
    words = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            words.append(_limits(item.metadata))
        elif isinstance(item, at.GroupedMetadata):
            words.append(_limits(list(item)))
        elif isinstance(item, at.Ge):
            words.append(f" >= {item.ge}")
        elif isinstance(item, at.Gt):
            words.append(f" > {item.gt}")
        elif isinstance(item, at.Le):
            words.append(f" <= {item.le}")
        elif isinstance(item, at.Lt):
            words.append(f" < {item.lt}")
        elif isinstance(item, at.MinLen):
            words.append(f", at least {item.min_length} long")
        elif isinstance(item, at.MaxLen):
            words.append(f", at most {item.max_length} long")
    bounds = [word for word in words if not word.startswith(",")]
    return " and".join(bounds) + "".join(word for word in words if word.startswith(","))


def got(value: object) -> str:
    """What came, with its type in words: `the text 'abc'`, `the number 1.5`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    kinds: tuple[tuple[type, str], ...] = (
        (int, "integer"), (float, "number"), (str, "text"), (Mapping, "mapping"), (Sequence, "list"),
    )  # fmt: skip
    kind = next((word for cls, word in kinds if isinstance(value, cls)), type(value).__name__)
    text = repr(value)
    return f"the {kind} {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"


def unknown_key(key: str, legal: Sequence[str]) -> str:
    """Says that there is no such key, and which of the legal dotted keys may be meant."""
    spelled = key.replace("/", ".")
    section, _, leaf = spelled.rpartition(".")
    below = [name for name in legal if name.startswith(f"{key}.")]
    if below:
        return f"{key} is a section, not a value; its keys are {', '.join(below)}"
    if key in {name.rpartition(".")[0] for name in legal if "." in name}:
        return f"{key} is a section, not a value"
    within = [name for name in legal if section and name.rpartition(".")[0] == section]
    elsewhere = [name for name in legal if "." in name and name.rpartition(".")[2] == leaf]
    if section and leaf in FAMILIES:
        return f"there is no key {key}: {leaf} is a group of its own, give {leaf}={' or '.join(FAMILIES[leaf].names())}"
    if section and elsewhere and spelled not in legal:
        return f"there is no key {key}; did you mean {' or '.join(elsewhere)}?"
    close = _closest(leaf, {name: (name.rpartition(".")[2],) for name in within})
    if not close:
        close = _closest(leaf, {name: (name.rpartition(".")[2],) for name in legal}, cutoff=0.8)
    if not close and not within:
        close = _closest(spelled, {name: (name,) for name in legal})
    if close:
        return f"there is no key {key}; did you mean {' or '.join(close)}?"
    siblings = within or [name for name in legal if "." not in name] or list(legal)
    return f"there is no key {key}; legal are {', '.join(siblings) if siblings else 'none'}"


def _closest(word: str, spellings: Mapping[str, Sequence[str]], cutoff: float = 0.55) -> list[str]:
    """The (at most three) names one of whose spellings is nearest to `word`, the nearest first."""
    scores = {
        name: max(difflib.SequenceMatcher(None, word.lower(), spelling.lower()).ratio() for spelling in spelled)
        for name, spelled in spellings.items()
    }
    near = sorted((name for name, score in scores.items() if score >= cutoff), key=lambda name: -scores[name])
    # A name as good as typed leaves no doubt: naming others beside it would only distract.
    best = [name for name in near if scores[name] >= 0.999]
    return best or near[:3]
