"""What a node keeps of what the server sends once: frozen tensors, what was merged into them, and the last model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from client_app.homes.site import Site
from client_app.stores.frozen import Since
from client_app.stores.last_model import LastModel, keep_model
from exchanges.records import grouped
from fedrec.core.errors import PacketError
from fedrec.core.tensors import Tensors, content_digest, matches
from fedrec.wire.eligible import eligible_spec
from fedrec.wire.item_labels import labels_spec
from fedrec.wire.item_list import item_list_format
from fedrec.wire.protocol import frozen_format
from peft_embeddings.model import BASE, Model
from peft_embeddings.versions import held_format, merged_format, next_version, version_name

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
    elif name == setup.item_labels:
        form = frozen_format(labels_spec(setup.n_items))
    else:
        form = held_format(setup, node.model(phase), merged=name != content)
    received = form.decode(packet)
    of_the_run = name not in (setup.catalogue, setup.eligible, setup.item_labels)
    if of_the_run and (problem := node.model(phase).frozen_problem(received.tensors)):
        raise PacketError("malformed", f"frozen tensors of phase {phase} with {problem}")
    since = Since(grouped(setup.run_key, group), received.round) if of_the_run else None
    node.frozen_store.put(received.tensors, name, content, since)


def keep_merged(node: Node, phase: int, group: str, versions: Sequence[str], packets: Sequence[bytes]) -> None:
    """Make the last of some versions of what a group holds from the newest of them that is here, and keep it.

    Nothing is done if the last is here already, or none is: then what is missing will be asked for. Raises PacketError
    (`malformed`) if a packet does not make the version that it is said to make.

    Args:
        node: The node.
        phase: The phase to which they belong.
        group: The group.
        versions: Their names, oldest first.
        packets: What makes each of them of the one before it, from the second on.
    """
    store, setup = node.frozen_store, node.setup
    place = next((place for place in reversed(range(len(versions))) if store.get(versions[place]) is not None), None)
    if place is None or place == len(versions) - 1:
        return
    model = node.model(phase)
    if not model.steps and BASE not in model.frozen:
        raise PacketError("malformed", f"in phase {phase} there is no base table to merge anything into")
    form, since = merged_format(setup, model), 0
    held = dict(store.get(versions[place]) or {})
    require_held(model, held, versions[place])
    for before, after, packet in zip(versions[place:], versions[place + 1 :], packets[place:], strict=False):
        if version_name(before, packet) != after:
            raise PacketError("malformed", f"what came to be merged into {before} does not make {after}")
        merged = form.decode(packet, phase=phase)
        held, since = next_version(setup, model, held, merged.tensors), merged.round
    store.put(held, versions[-1], content_digest(held), Since(grouped(setup.run_key, group), since))


def require_held(model: Model, held: Tensors, name: str) -> None:
    """Raise PacketError (`malformed`) if what is kept under a name is not what is held under the model."""
    spec = model.held
    if held.keys() != spec.keys() or not all(matches(spec[each], held[each]) for each in spec):
        raise PacketError("malformed", f"what was sent as {name!r} is not what is held in this phase")


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
