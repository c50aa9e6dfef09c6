"""`fedrec recommend`: a user's best items, on the machine where the user's history is, without any network."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client_app.answers.node import Node
from client_app.answers.recommending import NOTHING
from client_app.answers.recommending import recommend as best
from client_app.homes.home import item_list
from client_app.homes.site import Site
from client_app.homes.users import Cohort
from client_app.stores.frozen import MissingFrozenError
from client_app.stores.last_model import kept_models, read_model, run_of
from commands.kept_run import of_run
from commands.named_items import named_items
from commands.places import RecommendError, require_one, require_state_dir
from commands.recommendable import Recommendable, require_private_tensors
from fedrec.core.errors import FedrecError, StoreError
from fedrec.core.keys import opaque_keys
from fedrec.wire.item_list import ItemList
from fedrec.wire.protocol import Setup

log = logging.getLogger("fedrec")

_CLOSE = 3
_LOOKED_THROUGH = 100_000
"""Ids among which near ones are looked for; in a larger catalogue it would take seconds."""


_NO_TEXT = ("Cc", "Cs")
"""Unicode's categories of what steers a terminal, and of what cannot be written at all."""


def recommend(
    run: str | None, state_dir: str | None, user: str | None, history: str | None, top: int, group: str | None = None
) -> dict[str, Any]:
    """The `top` items for a user, as plain data for JSON.

    Args:
        run: Folder of a simulated run; or else
        state_dir: that of a site's SuperNode.
        user: Id of a user in the data; or else
        history: the ids of somebody's items, with a comma between them.
        top: How many items.
        group: The group whose model is taken; None: the user's own or, where no model of that is here, the nearest.

    One of the two is None. Raises RecommendError, or a StoreError for files that cannot be used.
    """
    torch.set_num_threads(1)
    source = source_of(run, state_dir)
    node = source.node
    who, own = _known_user(source, user) if user is not None else _newcomer(node, source.items, str(history))
    received = source.model_of(_served_by(source, who, own, group))
    found = best(node, received, who, top)
    if not found.sane[0]:
        raise StoreError("the user's private tensors are not finite: its training has diverged; train anew")
    rows = [row for row in found.rows[0].tolist() if row != NOTHING]
    if not rows:
        raise RecommendError("there is nothing left to recommend: every item that may be is known to this user already")
    ids, titles = source.items
    return {
        "from": source.name,
        "round": received.round,
        **({"group": name} if (name := node.setup.groups[received.group]) else {}),
        **({"instead_of": node.setup.groups[own]} if received.group != own else {}),
        "passed_over": list(source.passed_over),
        "user": user,
        "history": len(who.items),
        "trained": bool(found.trained[0]),
        "items": [
            {"item_id": ids[row], "title": titles[row], "score": score}
            for row, score in zip(rows, found.scores[0].tolist(), strict=False)
        ],
    }


def source_of(run: str | None, state_dir: str | None) -> Recommendable:
    """What to recommend from, by what a command was given: one of the two.

    Raises RecommendError, or a StoreError for files that cannot be used.
    """
    require_one(run, state_dir)
    return of_run(Path(run)) if run is not None else of_site(Path(str(state_dir)))


def show_recommendation(found: Mapping[str, Any], console: Console) -> None:
    """Print what `recommend` has found as a table."""
    who = f"user {found['user']}" if found["user"] is not None else "somebody new"
    console.print(items_table(f"For {who}, who knows {found['history']:,} items", found["items"], "score"))
    trained = "" if found["trained"] else "; the user has never trained, and is served from its items alone"
    newer = "; newer ones are damaged" if found["passed_over"] else ""
    group = f" of the group {found['group']}" if "group" in found else ""
    if "instead_of" in found:
        group += f" (the user is of the group {found['instead_of']})"
    console.print(f"from the model{group} of round {found['round']}{newer}{trained}", highlight=False, markup=False)


def items_table(title: str, items: Sequence[Mapping[str, Any]], figure: str) -> Table:
    """Items, best first, each with its `item_id`, its `title`, and a number by the name of `figure`."""
    table = Table(title=printable(title), title_justify="left")
    for column in ("", "item", "title", figure):
        table.add_column(column, justify="right" if column in ("", figure) else "left", overflow="fold")
    for place, item in enumerate(items, 1):
        table.add_row(str(place), *map(printable, (item["item_id"], item["title"])), f"{item[figure]:.4f}")
    return table


def printable(text: str) -> Text:
    """A text that others have written, as it may be shown in a terminal."""
    # Brackets in a title are no markup; and a server that names the items has no business with this terminal.
    return Text("".join("\N{REPLACEMENT CHARACTER}" if category(letter) in _NO_TEXT else letter for letter in text))


def of_site(state_dir: Path) -> Recommendable:
    """The last sound model that a site received, and its node.

    Raises RecommendError or StoreError if there is nothing, or nothing sound, to recommend from.
    """
    require_state_dir(state_dir)
    problems: list[str] = []
    found: Recommendable | None = None
    for path in kept_models(state_dir):
        if found is not None and run_of(path) != found.node.setup.run_key:
            continue
        lists: dict[str, str] = {}
        try:
            about, packet = read_model(path)
            setup = Setup.from_json(about.setup)
            lists = {
                setup.eligible: "the list of items that may be recommended",
                setup.item_labels: "the labels of items, by which users are grouped,",
            }
            node = found.node if found is not None else _site_node(setup, state_dir, about.group)
            group = setup.groups.index(about.group)
            received = node.receive(about.phase, about.round, group, packet, about.frozen)
            if found is None:
                _ = node.sampler
                items = item_list(node.frozen_store, setup)
                _ = node.users  # what was prepared is compared with its digest
                _ = node.item_labels
                require_private_tensors(state_dir, "the next round makes another, in which its users start anew")
                found = Recommendable(str(state_dir), node, {}, items)
            found = found._replace(models={**found.models, group: received})
        except (OSError, ValueError, FedrecError) as error:
            problems.append(f"{path.name}: {error}")
            log.warning("a model is passed over: %s", problems[-1])
        except MissingFrozenError as error:
            lacking = lists.get(error.digest, f"what is frozen under the model ({error.digest})")
            problems.append(f"{path.name}: missing or damaged: {lacking}")
            log.warning("a model is passed over: %s", problems[-1])
    if found is not None:
        return found
    if problems:
        raise StoreError(f"no model in {state_dir} can be used: {'; '.join(problems)}. The next round brings another")
    raise RecommendError(f"{state_dir} holds no model yet: this site has not been sent one; wait for a round of a run")


def _site_node(setup: Setup, state_dir: Path, group: str) -> Node:
    """The site's node of a run, one of whose groups it is of. Its data is prepared: no interactions are read."""
    return Node(setup, Site(state_dir.resolve() / "nothing", state_dir.resolve(), group=group))


def _known_user(source: Recommendable, user: str) -> tuple[Cohort, int]:
    """A user of the data, and the place of its group."""
    node = source.node
    slot = node.users.slot_of(user)
    if slot is None:
        raise RecommendError(
            f"--user {user}: none of the {len(node.users):,} users here has this id; give an id as it is written in "
            "the data, or somebody's items with --history ITEM,ITEM,..."
        )
    who = node.users.whole(np.array([slot]))
    if source.keys is not None and who.keys[0] not in source.keys:
        raise StoreError(
            f"{source.name}: the checkpoint of round {source.round} does not know user {user}: setup.json or "
            "the checkpoint are not those of this run; restore the run folder from a copy"
        )
    return who, int(node.groups[slot])


def served_by(source: Recommendable, users: Cohort, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of the group whose model serves each user: its `own` group, int64 [users], or the nearest there is."""
    lacking = ~np.isin(own, list(source.models))
    found = own.copy()
    if lacking.any():
        found[lacking] = source.node.nearest(users.select(np.flatnonzero(lacking)), sorted(source.models))
    return found


def _served_by(source: Recommendable, who: Cohort, own: int, named: str | None) -> int:
    """The same of one user, or the group that is named."""
    names = source.node.setup.groups
    if named is None:
        return int(served_by(source, who, np.array([own]))[0])
    if named not in names:
        groups = f"the run has the groups {', '.join(names)}" if len(names) > 1 else "the run has no groups"
        raise RecommendError(f"--group {named}: {groups}")
    return names.index(named)


def _newcomer(node: Node, items: ItemList, history: str) -> tuple[Cohort, int]:
    """Somebody who is not in the data, and never will be: nothing of it is kept; and the place of its group."""
    named, unknown = named_items(history, items.ids)
    if unknown:
        told = [f"--history {item}: there is no such item{near_items(item, items)}" for item in unknown]
        raise RecommendError("; ".join(told))
    if not named:
        raise RecommendError("--history: expected the ids of items with a comma between them, it is empty")
    who = newcomer(node, named)
    return who, int(node.assigned(who)[0])


def newcomer(node: Node, rows: Sequence[int]) -> Cohort:
    """Somebody who is not in the data, by the catalogue rows of the items that it has, the oldest first."""
    items = np.array(rows, dtype=np.int64)
    return Cohort(opaque_keys(node.secret, ["\0somebody new"]), np.array([0, len(items)]), items)


def near_items(item: str, items: ItemList) -> str:
    """The end of a sentence about an id that there is not: those that are written nearly like it."""
    if len(items.ids) > _LOOKED_THROUGH:
        return ""
    near = get_close_matches(item, items.ids, n=_CLOSE)
    return (
        f"; did you mean {' or '.join(map(_quoted, near))}?"
        if near
        else "; ids are those of the server's list of items"
    )


def _quoted(item: str) -> str:
    """An id whose blanks at its ends would not be seen is told in quotes."""
    return item if item == item.strip() else repr(item)
