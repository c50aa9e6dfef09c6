"""What a node keeps of what the server sends once: frozen tensors, what was merged into them, and the last model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from client_app.homes.site import Site
from client_app.stores.frozen import Since
from client_app.stores.last_model import LastModel, keep_model
from exchanges.records import grouped
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors, content_digest, matches
from fedrec.wire.item_list import item_list_format
from fedrec.wire.protocol import eligible_spec, frozen_format, version_name
from peft_embeddings.model import BASE, Model

if TYPE_CHECKING:
    from client_app.answers.node import Node, Received

log = logging.getLogger("fedrec")


def keep_frozen(node: Node, phase: int, group: str, name: str, packet: bytes, content: str) -> None:
    """Check that frozen tensors which came with a message of a phase, for a group, have that content; keep them."""
    setup = node.setup
    if name == setup.catalogue:
        form = item_list_format(len(packet))
    elif name == setup.eligible:
        form = frozen_format(eligible_spec(setup.n_items))
    elif name == content:
        form = setup.start_format(node.model(phase).frozen, BASE)
    else:
        form = frozen_format(node.model(phase).frozen)
    received = form.decode(packet)
    of_the_run = name not in (setup.catalogue, setup.eligible)
    if of_the_run and (problem := node.model(phase).embedding.frozen_problem(received.tensors)):
        raise PacketError("malformed", f"frozen tensors of phase {phase} with {problem}")
    since = Since(grouped(setup.run_key, group), received.round) if of_the_run else None
    node.frozen_store.put(received.tensors, name, content, since)


def keep_merged(node: Node, phase: int, group: str, before: str, after: str, packet: bytes) -> None:
    """Make the version `after` of a group's base table from `before` and the packet of what was merged, and keep it.

    Nothing is done if it is here already, or if `before` is not: then what is missing will be asked for. Raises
    PacketError (`malformed`) if merging the packet does not make a version of that name.
    """
    held = node.frozen_store.get(before)
    if held is None or node.frozen_store.get(after) is not None:
        return
    if version_name(before, packet) != after:
        raise PacketError("malformed", f"what came to be merged into {before} does not make {after}")
    model = node.model(phase)
    if BASE not in model.frozen:
        raise PacketError("malformed", f"in phase {phase} there is no base table to merge anything into")
    require_frozen(model, held, before)
    merged = node.setup.merged_format(model.correction).decode(packet, phase=phase)
    frozen = held | {BASE: model.merged(merged.tensors, held)}
    since = Since(grouped(node.setup.run_key, group), merged.round)
    node.frozen_store.put(frozen, after, content_digest(frozen), since)


def require_frozen(model: Model, held: Tensors, name: str) -> None:
    """Raise PacketError (`malformed`) if what is kept under a name is not what is frozen under the model."""
    spec = model.frozen
    if held.keys() != spec.keys() or not all(matches(spec[each], held[each]) for each in spec):
        raise PacketError("malformed", f"what was sent as {name!r} is not what is frozen in this phase")


def keep_last_model(node: Node, received: Received, packet: bytes, frozen: str) -> None:
    """On a site: keep the model that has been received, to recommend with; in simulation there are checkpoints.

    One that is not finite, as after training has diverged, does not take the place of the last good one.
    """
    if not isinstance(node.place, Site):
        return
    if not all(bool(tensor.isfinite().all()) for tensor in received.model.trainable.values()):
        log.error("the model of round %d is not finite: the last one that is stays to recommend with", received.round)
        return
    group = node.setup.groups[received.group]
    about = LastModel(node.setup.to_json(), received.phase, received.round, group, frozen)
    keep_model(node.place.state_dir, node.setup.run_key, about, packet)
