"""`fedrec recommend`: a user's best items, on the machine where the user's history is, without any network."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file

from client_app.answers.node import Node, Received
from client_app.homes.home import Place, item_list
from client_app.homes.site import Site
from client_app.homes.users import Cohort
from client_app.stores.frozen import MissingFrozenError
from client_app.stores.last_model import kept_models, read_model
from client_app.training.engine import GlobalModel
from fedrec.core.errors import FedrecError, StoreError
from fedrec.core.keys import opaque_keys
from fedrec.wire.item_list import ItemList
from fedrec.wire.protocol import Setup, SimulatedData

_CLOSE = 3
_LOOKED_THROUGH = 100_000
"""Ids among which near ones are looked for; in a larger catalogue it would take seconds."""


_NO_TEXT = ("Cc", "Cs")
"""Unicode's categories of what steers a terminal, and of what cannot be written at all."""


class RecommendError(FedrecError):
    """There is nothing to recommend from, or the user or items are not known."""


class Source(NamedTuple):
    """What is recommended from: a node, its last model, and the items by name."""

    name: str
    node: Node
    received: Received
    items: ItemList


def recommend(
    run: str | None, state_dir: str | None, user: str | None, history: str | None, top: int
) -> dict[str, Any]:
    """The `top` items for a user, as plain data for JSON.

    Args:
        run: Folder of a simulated run; or else
        state_dir: that of a site's SuperNode.
        user: Id of a user in the data; or else
        history: the ids of somebody's items, with a comma between them.
        top: How many items.

    Raises RecommendError, or a StoreError for files that cannot be used.
    """
    if (run is None) == (state_dir is None):
        raise RecommendError(
            "give either the folder of a simulated run (fedrec recommend runs/<id> ...) or the state-dir of this "
            "machine's SuperNode (fedrec recommend --state-dir DIR ...)"
        )
    if (user is None) == (history is None):
        raise RecommendError("give either a user of the data (--user ID) or somebody's items (--history ITEM,ITEM,...)")
    torch.set_num_threads(1)
    source = of_run(Path(run)) if run is not None else of_site(Path(str(state_dir)))
    node = source.node
    who = _known_user(node, user) if user is not None else _newcomer(node, source.items, str(history))
    found = node.recommend(source.received, who, top)
    ids, titles = source.items
    return {
        "from": source.name,
        "round": source.received.round,
        "user": user,
        "history": len(who.items),
        "trained": found.trained,
        "items": [
            {"item_id": ids[row], "title": titles[row], "score": score}
            for row, score in zip(found.rows, found.scores, strict=True)
        ],
    }


def show_recommendation(found: Mapping[str, Any], console: Console) -> None:
    """Print what `recommend` has found as a table."""
    who = f"user {found['user']}" if found["user"] is not None else "somebody new"
    table = Table(title=_plain(f"For {who}, who knows {found['history']:,} items"), title_justify="left")
    for column in ("", "item", "title", "score"):
        table.add_column(column, justify="right" if column in ("", "score") else "left", overflow="fold")
    for place, item in enumerate(found["items"], 1):
        table.add_row(str(place), *map(_plain, (item["item_id"], item["title"])), f"{item['score']:.4f}")
    console.print(table)
    trained = "" if found["trained"] else "; the user has never trained, and is served from its items alone"
    console.print(f"from the model of round {found['round']}{trained}", highlight=False, markup=False)


def _plain(text: str) -> Any:
    from rich.text import Text

    # Brackets in a title are no markup; and a server that names the items has no business with this terminal.
    return Text("".join("\N{REPLACEMENT CHARACTER}" if category(letter) in _NO_TEXT else letter for letter in text))


def of_run(folder: Path) -> Source:
    """The last checkpoint of a simulated run, and the node on which all its users live."""
    if not folder.is_dir():
        near = get_close_matches(folder.name, _names(folder.parent), n=_CLOSE)
        paths = " or ".join(str(folder.parent / name) for name in near)
        hint = f"did you mean {paths}?" if near else "give the path of a run folder, runs/<id>"
        raise RecommendError(f"{folder}: there is no such run; {hint}")
    try:
        setup = Setup.from_json((folder / "setup.json").read_text(encoding="utf-8"))
        listed = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        items = ItemList(tuple(listed["ids"]), tuple(listed["titles"]))
    except (OSError, ValueError, KeyError) as error:
        raise RecommendError(
            f"{folder} is not the folder of a run of this version of fedrec ({error}): give runs/<id>"
        ) from error
    if setup.simulation is None:
        raise RecommendError(
            f"{folder} is the server's folder of a deployment, and its users are with their SuperNodes: there, give "
            "fedrec recommend --state-dir DIR"
        )
    newest = max((folder / "checkpoints").glob("round-*.json"), default=None)
    if newest is None:
        raise RecommendError(f"{folder} has no checkpoint yet: wait for one, or set checkpoint_every")
    try:
        where = json.loads(newest.read_text(encoding="utf-8"))
        tensors = load_file(newest.with_suffix(".safetensors"))
        token = (folder / "state" / "token").read_text(encoding="ascii")
        phase, round = int(where["phase"]), int(where["round"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StoreError(f"{newest.with_suffix('')} cannot be used ({error}): the checkpoint is damaged") from error
    # The folder may have been moved since.
    place = SimulatedData(setup.simulation.interactions, str((folder / "state").resolve()), token)
    setup = dataclasses.replace(setup, simulation=place)
    node = Node(setup, Place(0, 1))
    model = GlobalModel(node.models[phase], _under("trainable.", tensors), _under("frozen.", tensors))
    return Source(str(folder), node, Received(phase, round, model, 0), items)


def of_site(state_dir: Path) -> Source:
    """The last model that a site received, and its node."""
    if not state_dir.is_dir():
        raise RecommendError(f"--state-dir {state_dir}: there is no such folder; give the state-dir of the SuperNode")
    problems = []
    for path in kept_models(state_dir):
        try:
            about, packet = read_model(path)
            setup = Setup.from_json(about.setup)
            node = Node(setup, Site(Path("/"), state_dir.resolve()))  # its data is prepared: the file is not read
            received = node.receive(about.phase, about.round, packet, about.frozen)
            return Source(str(state_dir), node, received, item_list(node.frozen_store, setup))
        except (OSError, ValueError, FedrecError) as error:
            problems.append(f"{path.name}: {error}")
        except MissingFrozenError as error:
            problems.append(f"{path.name}: the frozen tensors {error} are missing or damaged")
    if problems:
        raise StoreError(f"no model in {state_dir} can be used: {'; '.join(problems)}. The next round brings another")
    raise RecommendError(f"{state_dir} holds no model yet: this site has not been sent one; wait for a round of a run")


def _known_user(node: Node, user: str) -> Cohort:
    slot = node.users.slot_of(user)
    if slot is None:
        raise RecommendError(
            f"--user {user}: none of the {len(node.users):,} users here has this id; give an id as it is written in "
            "the data, or somebody's items with --history ITEM,ITEM,..."
        )
    return node.users.whole(slot)


def _newcomer(node: Node, items: ItemList, history: str) -> Cohort:
    """Somebody who is not in the data, and never will be: nothing of it is kept."""
    # Several lines are as good as one: ids often stand in a file, one below the other.
    named = [item.strip() for line in csv.reader(history.splitlines()) for item in line if item.strip()]
    if not named:
        raise RecommendError("--history: expected the ids of items with a comma between them, it is empty")
    row_of = {item: row for row, item in enumerate(items.ids)}
    if unknown := [item for item in named if item not in row_of]:
        told = [f"--history {item}: there is no such item{_near(item, items)}" for item in unknown]
        raise RecommendError("; ".join(told))
    rows = np.array(list(dict.fromkeys(row_of[item] for item in named)), dtype=np.int64)
    return Cohort(opaque_keys(node.secret, ["\0somebody new"]), np.array([0, len(rows)]), rows)


def _near(item: str, items: ItemList) -> str:
    if len(items.ids) > _LOOKED_THROUGH:
        return ""
    near = get_close_matches(item, items.ids, n=_CLOSE)
    return f"; did you mean {' or '.join(near)}?" if near else "; ids are those of the server's list of items"


def _names(folder: Path) -> Sequence[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
