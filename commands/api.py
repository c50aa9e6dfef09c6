"""The Python interface: `import fedrec`, then `fedrec.train(...)` or `tune(...)`, `Run(folder)` and `compare(...)`.

It does what the commands do, in this process, and gives frames of pandas. `fedrec/__init__.py` offers these names and
imports this module when one of them is first asked for, so that nothing of it is on the path of a client.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from rich.console import Console

from client_app.homes.users import Cohort
from commands import compare as comparing
from commands import train as training
from commands import tune as tuning
from commands.arrow_frames import kept_frame
from commands.beyond_accuracy import base_table, list_metrics
from commands.item_vectors import item_vectors, most_similar
from commands.kept_run import of_run
from commands.list_figures import FIGURES
from commands.open_recipe import leaves_recipe_open, told
from commands.places import RecommendError
from commands.recommend import newcomer, served_by
from commands.recommend_all import COLUMNS, lines_of
from commands.recommendable import Recommendable
from fedrec.config.compose import compose as composed
from fedrec.config.paths import assign, key_of, portable, settle, working_directory
from fedrec.core.disk import reading
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.strict_json import parsed_object
from fedrec.evaluation.curves import CURVE, read_records
from server_app.run_folder import SUMMARY

log = logging.getLogger("fedrec")

Value = str | int | float | bool | Path | None | Sequence[Any] | Mapping[str, Any]
"""What a key of the configuration, or a section of it, can be given."""


def train(
    *overrides: str,
    interactions: Any = None,
    items: Any = None,
    quiet: bool = False,
    **sections: Value,
) -> Run:
    """Train in this process, as `fedrec train` does: by a recipe that is chosen, if nothing of one is given.

    Args:
        overrides: As on the command line: `"optim=fast"`, `"strategy.rounds=30"`.
        interactions: A table of interactions, as pandas, polars, pyarrow or anything else hands one over that speaks
            Arrow (`__arrow_c_stream__`); its columns are named by `dataset.user_column` and so on, by default
            `user_id`, `item_id` and `timestamp`. It is kept as a Parquet file in the cache.
        items: The same of the items: by default `item_id`, `title` and what `dataset.text_columns` names.
        quiet: Show neither progress nor summary.
        sections: More overrides: `strategy="fedras"`, `optim={"lr": 0.01}`, `seed=1`.

    Returns:
        The finished run, in its folder.

    Raises ConfigError, which names all that is wrong with the configuration, or another FedrecError.
    """
    base, texts = working_directory(), _typed(overrides, sections, interactions, items)
    config = settle(composed(texts, base=base), base)
    console = Console(file=sys.stderr, quiet=quiet)
    with _one_thread():
        if leaves_recipe_open(texts, config):
            console.print(told(tuning.CANDIDATES), soft_wrap=True, highlight=False, markup=False)
            summary = tuning.tune(texts, tuning.CANDIDATES, base, console=console)
        else:
            summary = training.train(config, portable(texts, config), console=console)
    return Run(summary["run"])


def tune(
    *overrides: str,
    among: Sequence[str] = tuning.CANDIDATES,
    interactions: Any = None,
    items: Any = None,
    quiet: bool = False,
    **sections: Value,
) -> Run:
    """Try a few experiments by validation, and train the best one, as `fedrec tune` does.

    Args:
        overrides: As in `train`; they hold for all experiments.
        among: The experiments.
        interactions: As in `train`.
        items: As in `train`.
        quiet: Show nothing.
        sections: More overrides.

    Returns:
        The finished run of the best one; its `summary` does not have the search, which is in its folder's `tune.json`.

    Raises as `train` does.
    """
    base, texts = working_directory(), _typed(overrides, sections, interactions, items)
    console = Console(file=sys.stderr, quiet=quiet)
    with _one_thread():
        return Run(tuning.tune(texts, _several(among, "among"), base, console=console)["run"])


def compare(runs: Sequence[Run | str | Path], ceiling: Run | str | float | None = None) -> pandas.DataFrame:
    """Finished runs side by side, as `fedrec compare` has them: a line a run, with a column for each figure.

    Args:
        runs: Runs, folders, or kept runs as JSON files.
        ceiling: What `to_reach` is measured by: a run or a number; None: the best of the runs.

    Raises FedrecError as the command does.
    """
    named = None if ceiling is None else str(ceiling.folder if isinstance(ceiling, Run) else ceiling)
    paths = [str(run.folder if isinstance(run, Run) else run) for run in _several(runs, "runs")]
    if not paths:
        raise FedrecError("runs: expected at least one, it is empty")
    return pandas.json_normalize(comparing.compare(paths, named).as_dict()["runs"])


class Run:
    """A finished run of this machine, in its folder.

    Attributes:
        folder: Where it is.
    """

    def __init__(self, folder: str | Path) -> None:
        """Of the folder that a run has left. Raises RecommendError if it has no summary there."""
        self.folder = Path(folder)
        if not (self.folder / SUMMARY).is_file():
            raise RecommendError(f"{folder}: there is no finished run; give the path of a run folder, runs/<id>")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds: metrics of the test, of baselines, bytes per user, and so on."""
        with reading(str(self.folder / SUMMARY), "restore the run folder from a copy"):
            return parsed_object((self.folder / SUMMARY).read_text(encoding="utf-8"))

    @property
    def metrics(self) -> pandas.DataFrame:
        """A line a round, with a column for each number; those of nested objects are named with dots."""
        return pandas.json_normalize(read_records(self.folder))

    @property
    def curve(self) -> pandas.DataFrame:
        """A line for every round that was validated: bytes per user until then, and NDCG@10."""
        return pandas.read_csv(self.folder / CURVE)

    @cached_property
    def _source(self) -> Recommendable:
        return of_run(self.folder)

    @property
    def items(self) -> pandas.DataFrame:
        """Ids and titles of all items, in the order of the model's rows, and which may be recommended."""
        ids, titles = self._source.items
        eligible = np.zeros(len(ids), dtype=bool)
        eligible[self._source.node.sampler.eligible] = True
        return pandas.DataFrame({"item_id": ids, "title": titles, "eligible": eligible})

    @property
    def users(self) -> list[str]:
        """Ids of all users, as they are in the data."""
        node = self._source.node
        return node.users.ids(np.arange(len(node.users)))

    def recommend(self, users: Sequence[str] | None = None, n: int = 10) -> pandas.DataFrame:
        """The `n` best items that each user does not know, a line an item, best first.

        Args:
            users: Ids, as they are in the data; None: all users.
            n: How many items of each.

        Returns:
            Columns `user_id`, `rank`, `item_id`, `title` and `score`, the users in the order in which they were asked.
            There is nothing for a user who knows everything, or whose private tensors are not finite, which the log
            says.

        Raises RecommendError for a user who is not in the data, and StoreError if the model has diverged.
        """
        node = self._source.node
        place = {user: slot for slot, user in enumerate(self.users)}
        asked = list(place) if users is None else _several(users, "users")
        if unknown := [user for user in asked if user not in place]:
            raise RecommendError(f"none of the {len(place):,} users here has the id {_some(unknown)}")
        slots = np.array([place[user] for user in asked], dtype=np.int64)
        return self._frame(asked, node.users.whole(slots), node.groups[slots], n)

    def recommend_from(self, histories: Mapping[str, Sequence[str]], n: int = 10) -> pandas.DataFrame:
        """The same for people who are not in the data. Nothing of them is kept.

        Args:
            histories: Of each, by a name of your own, the ids of its items, the oldest first.
            n: How many items of each.

        Raises RecommendError for an item that there is not, and for an empty history.
        """
        node = self._source.node
        who = [newcomer(node, self._rows(name, items)) for name, items in histories.items()]
        offsets = np.cumsum([0, *(len(person.items) for person in who)])
        keys = np.concatenate([np.zeros(0, dtype=np.uint64), *(person.keys for person in who)])
        cohort = Cohort(keys, offsets, np.concatenate([np.zeros(0, dtype=np.int64), *(one.items for one in who)]))
        return self._frame(list(histories), cohort, node.assigned(cohort), n)

    def _rows(self, name: str, items: Sequence[str]) -> list[int]:
        """The catalogue rows of a history, each once."""
        named = _several(items, f"history of {name}")
        if not named:
            raise RecommendError(f"history of {name}: expected the ids of items, it is empty")
        if unknown := [item for item in named if item not in self._row_of]:
            raise RecommendError(f"history of {name}: there is no item {_some(unknown)}")
        return list(dict.fromkeys(self._row_of[item] for item in named))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self._source.items.ids)}

    def item_vectors(self, group: str = "") -> NDArray[np.float32]:
        """The vectors of all items, float32 [items, dim], in the order of `items`; in a run with groups, of one."""
        return item_vectors(self._source, group)

    def similar_items(self, item: str, n: int = 10, group: str = "") -> pandas.DataFrame:
        """The `n` items whose vectors point most nearly where that of `item` does.

        Returns:
            Columns `item_id`, `title` and `similarity` (the cosine), best first, of items that may be recommended.

        Raises RecommendError if there is no such item.
        """
        ids, titles = self._source.items
        if str(item) not in self._row_of:
            raise RecommendError(f"there is no item {item}; ids are those of the server's list of items")
        best, similarity = most_similar(self._source, self._row_of[str(item)], _count(n), group)
        columns = {"item_id": [ids[other] for other in best], "title": [titles[other] for other in best]}
        return pandas.DataFrame({**columns, "similarity": similarity})

    def beyond_accuracy(self, ks: Sequence[int] = (10,)) -> pandas.DataFrame:
        """What the lists of the tested users are like beside right: a line for each length of `ks`.

        Returns:
            Columns `coverage`, `gini`, `popularity`, `novelty` and `diversity` (docs/runs.md), with the length as the
            index; NaN where nothing can be said.
        """
        lengths = [_count(k) for k in ks]
        with _one_thread():
            found = list_metrics(self._source, lengths, base_table(self.folder))
        lines = [{name: found.get(f"{name}@{k}", np.nan) for name in FIGURES} for k in lengths]
        return pandas.DataFrame(lines, index=pandas.Index(lengths, name="k"), columns=list(FIGURES))

    def _frame(self, names: list[str], cohort: Cohort, groups: NDArray[np.int64], n: int) -> pandas.DataFrame:
        """Recommendations for a cohort, in its order, by the model of each user's group or of the nearest there is."""
        groups = served_by(self._source, cohort, groups)
        found: dict[int, list[tuple[Any, ...]]] = {}
        diverged = 0
        for group in np.unique(groups).tolist():
            slots = np.flatnonzero(groups == group)
            with _one_thread():
                lines, how = lines_of(self._source, group, cohort.select(slots), _count(n))
            diverged += int((~how.sane).sum())
            for slot, mine in zip(slots.tolist(), lines, strict=True):
                found[slot] = [(names[slot], *line) for line in mine]
        if diverged:
            log.warning("%d of %d users get nothing: their private tensors are not finite", diverged, len(names))
        return pandas.DataFrame([line for slot in range(len(names)) for line in found[slot]], columns=list(COLUMNS))


def _typed(overrides: Sequence[str], sections: Mapping[str, Value], interactions: Any, items: Any) -> list[str]:
    """All overrides as text, with those that name the files of given tables."""
    texts = [*overrides, *(text for name, value in sections.items() for text in _overrides(name, value))]
    return texts + (_tables(texts, interactions, items) if interactions is not None or items is not None else [])


def _overrides(key: str, value: Value) -> list[str]:
    """The overrides that give a key, or all that a mapping names below it, a value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return [text for name, inner in value.items() for text in _overrides(f"{key}.{name}", inner)]
    if value is None or isinstance(value, bool):
        return [f"{key}={json.dumps(value)}"]
    if isinstance(value, str | Path):
        return [assign(key, value)]
    if isinstance(value, int | float):
        return [f"{key}={value!r}"]
    if not isinstance(value, list | tuple) or any(isinstance(inner, Mapping) for inner in value):
        raise ConfigError(
            [f"{key}: expected a number, a text, true or false, None, or a list or a section of these, got {value!r}"]
        )
    return [f"{key}=[{','.join(_overrides('', inner)[0][1:] for inner in value)}]"]


def _tables(texts: Sequence[str], interactions: Any, items: Any) -> list[str]:
    """The overrides that name the files in which given tables are kept."""
    if interactions is None:
        raise ConfigError(["items without interactions: give both, or the item table's path in dataset.item_table"])
    keys = set(map(key_of, texts))
    places = ("dataset", "dataset.interactions", *(("dataset.item_table",) if items is not None else ()))
    if named := [key for key in places if key in keys]:
        raise ConfigError([f"{key} is given, and a table as well: leave one of them out" for key in named])
    found = ["dataset=table", assign("dataset.interactions", kept_frame(interactions, "interactions"))]
    return found + ([assign("dataset.item_table", kept_frame(items, "items"))] if items is not None else [])


def _several(values: Iterable[Any], what: str) -> list[Any]:
    """Several values, ids and names as text. Raises RecommendError for one text, whose letters would be taken."""
    if isinstance(values, str | bytes):
        raise RecommendError(f"{what}: expected a list, got the one text {values!r}; give [{values!r}]")
    return [value if isinstance(value, Run | Path) else str(value) for value in values]


def _count(n: object) -> int:
    """How many items are asked for. Raises RecommendError if that is no whole number, one or more."""
    if not isinstance(n, int | np.integer) or n < 1:
        raise RecommendError(f"n={n!r}: expected a whole number, 1 or more")
    return int(n)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch in one thread meanwhile, which is faster for many small operations; then as the caller had it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
