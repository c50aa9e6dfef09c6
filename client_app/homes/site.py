"""A site: a SuperNode whose users are in a file of its own, as its node configuration says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from client_app.stores.layout import require_layout
from fedrec.core.bounds import GRADES
from fedrec.core.errors import ConfigError, StoreError
from fedrec.core.owned import own_folder
from fedrec.core.registry import nearest
from fedrec.data.form import AUTO, SUFFIXES, TextForm, suffix_of, unknown_form

_OF_A_SIMULATION = ("partition-id", "num-partitions")
_EXAMPLE = "--node-config \"interactions='/data/clicks.csv' state-dir='/var/lib/fedrec'\""


@dataclass(frozen=True)
class Site:
    """Where the users of this node are, and where it keeps what is theirs.

    The names are those of the node configuration, with a dash for an underscore; the defaults those of `dataset=table`.

    Attributes:
        interactions: Absolute path of the table of interactions, a file or a folder of parts.
        state_dir: Absolute folder of this node alone: secret, prepared data, private tensors, the last model.
        user_column: Column of user ids.
        item_column: Column of item ids, those of the server's catalogue.
        time_column: Column of times; empty: the order in the file is the order in time.
        rating_column: Column of ratings; empty: none.
        min_rating: Interactions rated lower are left out; None: any rating is an interaction.
        separator: Between the fields of a line; empty: a comma in .csv, a tab in other text.
        encoding: Of a text file.
        quote: Around a field that may hold separators; "auto": `"` unless the separator is a tab or longer than one
            character; empty: none.
        escape: Before a character that is to be taken as it is; empty: none.
        columns: The names of the columns of a file without a header line, with commas between them; empty: it has
            one.
        policy: Absolute path of the site's policy (`client_app.homes.policy`); None: `policy.toml` in the state-dir.
        group: The group of its users, in a run with `grouping=site`; empty: it names none.
        grade: What it says of its devices, for runs that send less to lesser ones; empty: nothing.
    """

    interactions: Path
    state_dir: Path
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = "timestamp"
    rating_column: str = ""
    min_rating: float | None = None
    separator: str = ""
    encoding: str = "utf-8"
    quote: str = AUTO
    escape: str = ""
    columns: str = ""
    policy: Path | None = None
    group: str = ""
    grade: str = ""

    @property
    def form(self) -> TextForm:
        """How the text of the file is read."""
        names = tuple(name.strip() for name in self.columns.split(",")) if self.columns else None
        return TextForm(self.separator or None, self.encoding, self.quote, self.escape, names, prefix="")

    @property
    def read_columns(self) -> dict[str, str]:
        """The columns that are read, by the key of the configuration that names each."""
        named = {
            "user-column": self.user_column,
            "item-column": self.item_column,
            "time-column": self.time_column,
            "rating-column": self.rating_column,
        }
        return {key: column for key, column in named.items() if column}


_FORM = ("separator", "encoding", "quote", "escape", "columns")
_KEYS = {field.name.replace("_", "-"): field.name for field in fields(Site)}


def is_site(node_config: Mapping[str, object]) -> bool:
    """Whether a node configuration is that of a site, and not of a node of a simulation."""
    return not all(key in node_config for key in _OF_A_SIMULATION) or any(key in node_config for key in _KEYS)


def site_of(node_config: Mapping[str, object]) -> Site:
    """The site that a node configuration describes. Raises ConfigError with all its problems."""
    problems: list[str] = []
    values: dict[str, object] = {}
    for key, value in node_config.items():
        if key in _OF_A_SIMULATION:
            continue
        if key not in _KEYS:
            problems.append(f"{key}: there is no such key in a node's configuration; {nearest(key, list(_KEYS))}")
        elif key == "min-rating":
            if isinstance(value, bool) or not isinstance(value, int | float):
                problems.append(f"{key}={value!r}: expected a number")
            else:
                values[_KEYS[key]] = float(value)
        elif not isinstance(value, str):
            problems.append(f"{key}={value!r}: expected a text, as in {key}='...'")
        else:
            values[_KEYS[key]] = value
    for key in ("interactions", "state-dir", "policy"):
        if key not in node_config and key != "policy":
            problems.append(f"{key}: is missing; start the SuperNode with {_EXAMPLE}")
        elif isinstance(path := values.get(_KEYS[key]), str):
            values[_KEYS[key]] = Path(path)
            problems += path_problems(key, Path(path))
    for key in ("user-column", "item-column"):
        if values.get(_KEYS[key]) == "":
            problems.append(f"{key}='': expected the name of a column")
    if "min-rating" in node_config and not values.get("rating_column"):
        problems.append("min-rating: needs the column of the ratings; give rating-column='...' too")
    said = {name: value for name, value in values.items() if name in _FORM}
    problems += Site(Path(), Path(), **said).form.problems()  # type: ignore[arg-type]
    if not re.fullmatch(GRADES, str(values.get("grade", ""))):
        problems.append(f"grade={values['grade']!r}: expected a short name of small letters, digits, '_' and '-'")
    if problems:
        raise ConfigError(problems)
    return Site(**values)  # type: ignore[arg-type]


def path_problems(key: str, path: Path) -> list[str]:
    """What is wrong with the path of a key, by its name alone; in a list, none if it may do."""
    if not path.is_absolute():
        return [f"{key}='{path}': expected an absolute path; from here it would be {path.absolute()}"]
    if key == "interactions" and suffix_of(path) not in ("", *SUFFIXES) and not path.is_dir():  # "": a folder's
        return [f"{key}='{path}': {unknown_form()}"]
    return []


def file_problems(site: Site) -> list[str]:
    """What is wrong with the site's file and folder as they are found on this machine."""
    problems = []
    if not (site.interactions.is_file() or site.interactions.is_dir()):
        problems.append(f"interactions='{site.interactions}': there is no such file on this machine")
    elif not os.access(site.interactions, os.R_OK):
        problems.append(f"interactions='{site.interactions}': the user of this process may not read it")
    return problems + folder_problems(site)


def folder_problems(site: Site) -> list[str]:
    """What is wrong with the site's folder, which is made if it is not there, and closed to others if it is open."""
    try:
        own_folder(site.state_dir)
    except OSError as error:
        return [
            f"state-dir='{site.state_dir}': cannot be made, or closed to others ({error.strerror}); give a folder on a "
            "disk that belongs to the user of this process"
        ]
    if not os.access(site.state_dir, os.W_OK | os.X_OK):
        return [f"state-dir='{site.state_dir}': the user of this process may not write there"]
    try:
        require_layout(site.state_dir)
    except StoreError as error:
        return [f"state-dir='{site.state_dir}': {error}"]
    return []
