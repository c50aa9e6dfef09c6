"""A node's side of the exchange with users who have items in common (see `fedrec.wire.expansion`)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from client_app.homes.budget import spend
from client_app.homes.site import Site
from client_app.training.engine import all_finite
from exchanges import members, records
from exchanges.declaration import Participant
from fedrec.core.errors import ConfigError, PacketError
from fedrec.core.rng import counter_bits, derive
from fedrec.core.tensors import DTYPES
from fedrec.wire.expansion import Drawn, Expansion, draw_items, make_tags, protected
from fedrec.wire.protocol import AROUND, TAGS, VECTORS, checkpoint_round

if TYPE_CHECKING:
    from client_app.answers.node import Node


def tag_key(node: Node) -> bytes | None:
    """The key of the tags of items, if the run has exchanges; asked when a node joins, and for each of them.

    Raises ConfigError or StoreError if this is a site that has no key, or if it would have to do without noise.
    """
    expansion = node.backbone.expansion
    if expansion is None:
        return None
    if expansion.epsilon is None and node.setup.simulation is None:
        raise ConfigError(
            [
                "in this run users would exchange vectors without noise, which is for simulations alone: run it with "
                "backbone.expand_epsilon=4.0, say, or with backbone.expand_every=0"
            ]
        )
    return node.shared_key


def disclose(node: Node, phase: int, round: int) -> bytes:
    """What all users here let others have after `round`: the encoded vectors and tags.

    A user whose own tensors are not finite takes part with dummies alone.
    """
    expansion, backbone, setup, key = _due(node, round), node.backbone, node.setup, tag_key(node)
    assert key is not None, "an exchange is due"
    run = "" if setup.simulation else setup.run_key  # simulated runs of one seed are the same whatever their names
    if isinstance(node.place, Site) and node.policy and expansion.epsilon is not None:
        spend(
            node.place.state_dir, node.policy, f"vectors of run {setup.run_key} after round {round}", expansion.epsilon
        )
    cohort, drawn = node.users.training(np.arange(len(node.users))), _drawn(node, expansion)
    private, _ = node.private(cohort.keys, before=round + 1)
    sane = all_finite(private, len(cohort))
    own = {name: torch.where(sane.view(-1, *[1] * (t.dim() - 1)), t, 0).double() for name, t in private.items()}
    vectors = backbone.disclosed(own, torch.from_numpy(drawn.sizes).double()).numpy()
    if not sane.all():
        drawn = _without(drawn, ~sane.numpy())
    secret, seed = node.secret.to_bytes(32, "little"), derive(node.secret, "expansion noise", repr(expansion), round)
    # Whatever a server asks for and when, a real device uses its noise for one vector only: two with the same noise
    # would tell how they differ. A simulated one may not look at a vector's last bits, which depend on the layout.
    draws = cohort.keys if setup.simulation else _of_vectors(cohort.keys, vectors)
    tensors = {
        VECTORS: protected(expansion, vectors, seed, draws),
        TAGS: make_tags(expansion, drawn, key, secret, run, cohort.keys),
    }
    form = members.Disclosing(setup.dim, expansion.items).up(Participant(cohort.keys))[records.DISCLOSED]
    return form.encode(phase, round, {name: torch.from_numpy(values) for name, values in tensors.items()})


def surround(node: Node, phase: int, round: int, packet: bytes) -> None:
    """Keep, as of `round`, what a packet tells all users here of those around them.

    Raises PacketError if it tells what no server could have worked out from what devices may send.
    """
    expansion, keys = _due(node, round), node.users.keys
    form = members.Surrounding(node.setup.dim).down(Participant(keys))[records.AROUND]
    received = form.decode(packet, phase=phase, round=round)
    told = received.tensors[AROUND]
    most = expansion.items * expansion.largest
    if not told.isfinite().all() or (told.abs() > most).any():
        raise PacketError("malformed", f"what users are told of others should be finite numbers of at most {most:g}")
    drawn = _drawn(node, expansion)
    sizes, taken = torch.from_numpy(drawn.sizes).double(), torch.from_numpy(drawn.taken).double()
    around = node.backbone.surrounded(told.double(), sizes, taken)
    kept = {name: around[name].to(DTYPES[entry.dtype]) for name, entry in node.backbone.around.items()}
    node.around_store.save(round, keys, kept, checkpoint_round(received))


def _due(node: Node, round: int) -> Expansion:
    """The rules. Raises PacketError (`malformed`) if the run has none, or none that ask for an exchange now."""
    expansion = node.backbone.expansion
    if expansion is None:
        raise PacketError("malformed", f"backbone {node.backbone.config.name!r} is set to disclose nothing")
    if round < 1 or round % expansion.every:
        raise PacketError("malformed", f"the setup has an exchange every {expansion.every} rounds, not after {round}")
    return expansion


def _drawn(node: Node, expansion: Expansion) -> Drawn:
    cohort = node.users.training(np.arange(len(node.users)))
    seed = derive(node.secret, "expansion items")
    return draw_items(expansion.items, node.setup.n_items, seed, cohort.keys, cohort.offsets, cohort.items)


def _without(drawn: Drawn, left_out: NDArray[np.bool_]) -> Drawn:
    """The same with no items of some users (bool [users])."""
    kept = ~left_out[drawn.owners]
    return Drawn(drawn.owners[kept], drawn.items[kept], drawn.sizes, np.where(left_out, 0, drawn.taken))


def _of_vectors(keys: NDArray[np.uint64], vectors: NDArray[np.float64]) -> NDArray[np.uint64]:
    """uint64 [users]: another number for each user and vector [users, width], to the last bit."""
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in vectors]
    return counter_bits(0, keys, np.frombuffer(b"".join(digests), dtype="<u8"))
