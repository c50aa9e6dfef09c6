"""What the folder of a simulated run holds to recommend from: the last sound checkpoint, the items, its users' data.

All of it is checked, as when the run is resumed. The prepared interactions are in a cache, which may have been emptied,
or the folder has been copied to another machine: then the data are prepared anew, and have to be the same.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import cast

from client_app.answers.node import Node, Received
from client_app.homes.home import KeptRun
from client_app.stores.frozen import MissingFrozenError
from client_app.training.engine import GlobalModel
from commands.places import RecommendError, require_run_folder
from commands.recommendable import Recommendable, require_private_tensors
from exchanges.split import whole
from federation.checkpoint import Checkpoint
from federation.server_model import ServerState
from fedrec.config.paths import home
from fedrec.config.resume import config_in
from fedrec.core.disk import reading
from fedrec.core.errors import ConfigError, DataError, FedrecError, PacketError, StoreError
from fedrec.core.strict_json import parsed_object
from fedrec.core.tensors import matches
from fedrec.data.prepare import load
from fedrec.data.store import content_digest, open_store, verify_store, write_store
from fedrec.data.types import Interactions
from fedrec.datasets.base import DatasetConfig
from fedrec.wire.item_list import ItemList
from fedrec.wire.protocol import Setup
from server_app.checkpoints import Checkpoints
from server_app.run_folder import CONFIG, ITEMS, SETUP

log = logging.getLogger("fedrec")

_RESTORE = "restore the run folder from a copy"


def of_run(folder: Path) -> Recommendable:
    """The newest sound checkpoint of a simulated run, and the node on which all its users live.

    Raises RecommendError or StoreError if there is nothing, or nothing sound, to recommend from.
    """
    require_run_folder(folder)
    setup = _setup(folder)
    if setup.simulation is None:
        raise RecommendError(
            f"{folder} is the server's folder of a deployment, and its users are with their SuperNodes: there, give "
            "fedrec recommend --state-dir DIR"
        )
    items = _items(folder, setup.n_items)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoint, kept = checkpoints.newest()
    if checkpoint is None:
        raise RecommendError(f"{folder} has no checkpoint yet: wait for one, or set checkpoint_every")
    state = (folder / "state").resolve()  # the folder may have been moved since
    require_private_tensors(state, _RESTORE)
    node = Node(setup, KeptRun(state, partial(_interactions, folder, Path(setup.simulation.interactions))))
    try:
        _ = node.sampler
    except MissingFrozenError as error:
        raise StoreError(
            f"the list of the items that may be recommended, {error} in {state / 'frozen'}, is missing, damaged or "
            f"not to be read: {_RESTORE}"
        ) from error
    try:
        _ = node.item_labels
    except (MissingFrozenError, PacketError) as error:
        raise StoreError(
            f"the labels of items, by which users are grouped, {error} in {state / 'frozen'}, are missing or damaged: "
            f"{_RESTORE}"
        ) from error
    round = checkpoint.for_use[0]
    trained = set(checkpoint.groups.tolist())  # of a group without users nobody has trained the model
    models = {
        number: Received(state.phase, round, number, _model(node, checkpoint.round, state, folder), kept[0])
        for number, state in _states(node, checkpoint, folder).items()
        if number in trained
    }
    passed_over = [round for round in checkpoints.rounds() if round > checkpoint.round]
    return Recommendable(str(folder), node, models, items, passed_over, checkpoint.users)


def _setup(folder: Path) -> Setup:
    no_run = "give runs/<id>, the folder of a run of this version of fedrec"
    with reading(f"{folder} is not the folder of a run of this version of fedrec: {SETUP}", no_run):
        text = (folder / SETUP).read_text(encoding="utf-8")
        try:
            return whole(Setup.from_json(text))  # who has the run's folder has all parts of its model
        except PacketError as error:
            raise ValueError(str(error)) from error


def _items(folder: Path, n_items: int) -> ItemList:
    """The ids and titles, one of each for every row of the model."""
    with reading(str(folder / ITEMS), _RESTORE):
        listed = parsed_object((folder / ITEMS).read_text(encoding="utf-8"))
        for name in ("ids", "titles"):
            texts = listed[name]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"its {name} are not a list of texts")
            if len(texts) != n_items:
                raise ValueError(f"it has {len(texts)} {name}, and the model {n_items} items")
        if len(set(listed["ids"])) != n_items:
            raise ValueError("it names an item twice")
    return ItemList(tuple(listed["ids"]), tuple(listed["titles"]))


def _states(node: Node, checkpoint: Checkpoint, folder: Path) -> dict[int, ServerState]:
    """Where each group's model stood, by the group's place. Raises StoreError if they are not those of this run."""
    states = checkpoint.for_use[1]
    with reading(f"the checkpoint of round {checkpoint.round} in {folder}", _RESTORE):
        groups = _named(node)
        if set(groups) != set(states):
            raise ValueError(f"its groups {sorted(states)} are not those that {SETUP} names")
    return {groups.index(name): state for name, state in states.items()}


def _named(node: Node) -> tuple[str, ...]:
    try:
        return node.setup.groups
    except FedrecError as error:  # a grouping that the setup names, and nobody has
        raise ValueError(str(error)) from error


def _model(node: Node, round: int, state: ServerState, folder: Path) -> GlobalModel:
    """The model of a checkpoint. Raises StoreError if it is not one of this run's."""
    with reading(f"the checkpoint of round {round} in {folder}", _RESTORE):
        try:
            model = node.models[state.phase]
        except FedrecError as error:  # members and values that the setup names, and nobody has
            raise ValueError(str(error)) from error
        for what, found, spec in (
            ("trainable", state.trainable, model.trainable),
            ("frozen", state.frozen, model.held),
        ):
            if found.keys() != spec.keys() or not all(matches(spec[name], found[name]) for name in spec):
                raise ValueError(f"its {what} tensors are not those of the model that {SETUP} names")
    return GlobalModel(model, *model.over(state.trainable, state.frozen))


def _interactions(folder: Path, stored: Path) -> Interactions:
    """The prepared interactions of the run, from where they were, or from this account's cache, or made anew there."""
    cache = home() / "cache"
    for place in dict.fromkeys((stored, cache / "interactions" / stored.name)):
        try:
            verify_store(place)
            return open_store(place)
        except StoreError as error:
            log.info("%s", error)
    log.warning("the prepared data of this run are not in %s: they are prepared anew from its %s", stored, CONFIG)
    otherwise = "put the data set back as it was, or give somebody's items with --history ITEM,ITEM,..."
    try:
        interactions = load(cast(DatasetConfig, config_in(folder).dataset)).interactions
    except (ConfigError, DataError) as error:
        raise RecommendError(f"{folder}: its users' data cannot be prepared anew: {error}; {otherwise}") from error
    if content_digest(interactions) != stored.name:
        raise RecommendError(f"{folder}: the data set is no longer the one that the run was trained on; {otherwise}")
    try:
        return open_store(write_store(interactions, cache))
    except StoreError as error:
        log.warning("the prepared data are not kept: %s", error)
        return interactions
