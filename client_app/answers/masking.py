"""A node's part in a secure sum, stage by stage (`fedrec.wire.secure`); it believes the server no more than it must.

Each function answers one stage. Refused are a roll that is not what its neighbours have announced, neighbours whom the
site's policy does not pin, too few participants, shares sealed for those on another roll, a second question of the same
stage that is not the first, and a list of who is lost that does not fit what was said before. What others were told no
node knows: `docs/privacy.md` says what that leaves to a server that lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client_app.answers.granting import require_users
from client_app.answers.handling import round_of, slots_of
from client_app.stores.stages import Remembered
from exchanges import records
from exchanges.records import Content
from exchanges.secure import noised_users, ring_of
from fedrec.aggregations.base import Masks
from fedrec.core.errors import FederationError, PacketError, PolicyError
from fedrec.secure import keys
from fedrec.secure.graph import DIGEST_BYTES, Graph, neighbours
from fedrec.secure.keys import SEED_BYTES, Agreed, Announced
from fedrec.secure.masks import common_masks, own_mask
from fedrec.secure.shamir import shares
from fedrec.stages.addition import MOST_USERS
from fedrec.wire import secure
from fedrec.wire.secure import Status

if TYPE_CHECKING:
    from client_app.answers.node import Node, Received

Bytes = NDArray[np.uint8]


def announce(node: Node, content: Content) -> Mapping[str, bytes]:
    """New secrets for the sum of a round, and what is announced of them."""
    phase, round = _where(node, content)
    slots = slots_of(content, len(node.users))
    if node.policy:
        require_users("an update", len(slots), node.policy.min_users_in_update)
    asked = slots.tobytes()
    found, stored = node.stage_store.begun("announce", phase, round, asked)
    if stored is not None:
        return {records.ANNOUNCED: stored}
    channel, mask, own = keys.new_seed(), keys.new_seed(), keys.new_seed()
    line = keys.announced(node.identity, channel, mask, len(slots), _context(node, phase, round)).packed()
    packet = secure.encoded(secure.announced_format(), phase, round, announced=line)
    found = dataclasses.replace(
        found,
        slots=tuple(slots.tolist()),
        channel=channel.hex(),
        mask=mask.hex(),
        own=own.hex(),
        announced=line.tobytes().hex(),
    )
    return {records.ANNOUNCED: node.stage_store.answered("announce", asked, found, packet)}


def share(node: Node, content: Content) -> Mapping[str, bytes]:
    """The node's two secrets, in shares sealed for its neighbours."""
    phase, round = _where(node, content)
    asked = content.packet(records.ROLL)
    found, stored = node.stage_store.begun("share", phase, round, asked)
    if stored is not None:
        return {records.SEALED: stored}
    count = content.integer(records.PARTICIPANTS)
    if not 0 < count <= len(asked) // DIGEST_BYTES:
        raise PacketError("malformed", f"a roll of {len(asked)} bytes does not name {count} participants")
    graph = _graph(node, count)
    came = secure.roll_format(count, graph).decode(asked, phase=phase, round=round).tensors
    roll, users, lines = (came[name].numpy() for name in ("roll", "users", "neighbours"))
    counts: list[int] = users.copy().view("<u4")[:, 0].tolist()
    theirs = [Announced.unpacked(line) for line in lines]
    context = _context(node, phase, round)
    _require_roll(node, found, roll, counts, theirs, graph, context)
    own, mask = bytes.fromhex(found.own), bytes.fromhex(found.mask)
    pairs = np.concatenate([shares(own, graph.threshold, graph.degree), shares(mask, graph.threshold, graph.degree)], 1)
    channel = Agreed(bytes.fromhex(found.channel), keys.context_among(context, roll.tobytes()))
    sealing = [channel.key(other.channel, f"shares of {channel.public.hex()}") for other in theirs]
    sealed = [keys.sealed(pair.tobytes(), key) for pair, key in zip(pairs, sealing, strict=True)]
    packet = secure.encoded(
        secure.sealed_up_format(graph),
        phase,
        round,
        sealed=np.frombuffer(b"".join(sealed), dtype=np.uint8).reshape(graph.degree, -1),
        commitment=np.frombuffer(keys.commitment(own, context), dtype=np.uint8),
    )
    found = dataclasses.replace(
        found,
        roll=roll.tobytes().hex(),
        users=tuple(counts),
        neighbours=tuple(line.tobytes().hex() for line in lines),
        opening=tuple(channel.key(other.channel, f"shares of {other.channel.hex()}").hex() for other in theirs),
        channel="",
    )
    return {records.SEALED: node.stage_store.answered("share", asked, found, packet)}


def masked(node: Node, content: Content, received: Callable[[], Received]) -> Mapping[str, bytes]:
    """Train the chosen users, and answer with the sum of what they give under the node's masks."""
    phase, round = _where(node, content)
    slots, packet = slots_of(content, len(node.users)), content.packet(records.SEALED)
    asked = b"".join([slots.tobytes(), packet, content.packet(records.MODEL), content.text(records.HOLDS).encode()])
    found, stored = node.stage_store.begun("train", phase, round, asked)
    if stored is not None:
        return {records.UPDATE: stored}
    if slots.tolist() != list(found.slots):
        raise PolicyError(f"round {round}: {len(slots)} users should train who are not those that were announced")
    graph = _graph(node, len(found.users))
    came = secure.sealed_down_format(graph).decode(packet, phase=phase, round=round).tensors
    sealed, present = came["sealed"].numpy(), came["present"].numpy()
    # Who takes another one for absent leaves out the mask in common with it: a server that tells everybody something
    # else of that could let the parts fall apart into two sums.
    needed = graph.degree if _masks(node).lying else graph.threshold
    if present.max() > 1 or present.sum() < needed:
        raise PolicyError(
            f"round {round}: {int((present == 1).sum())} of {graph.degree} neighbours have sent shares, a sum needs "
            f"{needed}"
        )
    theirs = [Announced.unpacked(_line(text)) for text in found.neighbours]
    opened = [
        keys.opened(box.tobytes(), bytes.fromhex(key)) if here else None
        for box, key, here in zip(sealed, found.opening, present, strict=True)
    ]
    if (readable := sum(pair is not None for pair in opened)) < graph.threshold:
        raise PolicyError(
            f"round {round}: what {readable} of {graph.degree} neighbours have sealed is for this node and the roll "
            f"that it was told, a sum needs {graph.threshold}"
        )
    model = received()
    update = node.trained(model, slots)
    ring = ring_of(node.setup.stages, model.model.model.trainable, sum(found.users))
    part = ring.vector(update.total, update.scalars())
    context, mask = _context(node, phase, round), bytes.fromhex(found.mask)
    part.add(own_mask(ring, bytes.fromhex(found.own), context))
    others = [other.mask for other, here in zip(theirs, present, strict=True) if here]
    part.add(common_masks(ring, Agreed(mask, context), others))
    packet = secure.encoded(secure.masked_format(ring), phase, round, **ring.packed(part))
    held = tuple("" if pair is None else pair.hex() for pair in opened)
    found = dataclasses.replace(found, held=held, present=tuple(present.tolist()))
    return {records.UPDATE: node.stage_store.answered("train", asked, found, packet)}


def unmask(node: Node, content: Content) -> Mapping[str, bytes]:
    """Of each neighbour that survived a share of its own mask, of each that was lost one of the masks in common."""
    phase, round = _where(node, content)
    asked = content.packet(records.STATUS)
    found, stored = node.stage_store.begun("unmask", phase, round, asked)
    if stored is not None:
        return {records.OPENED: stored}
    graph = _graph(node, len(found.users))
    form = secure.status_format(len(found.users))
    status = form.decode(asked, phase=phase, round=round).tensors["status"].numpy()
    place, mine = _places(found, graph)
    _require_status(node, found, status, place, mine, graph)
    kinds = np.zeros(graph.degree, dtype=np.uint8)
    told = np.zeros((graph.degree, SEED_BYTES), dtype=np.uint8)
    for at, (pair, kind) in enumerate(zip(found.held, status[mine], strict=True)):
        if pair and kind != Status.ABSENT:
            own, mask = _line(pair)[:SEED_BYTES], _line(pair)[SEED_BYTES:]
            kinds[at], told[at] = kind, own if kind == Status.SURVIVED else mask
    packet = secure.encoded(secure.opened_format(graph), phase, round, kinds=kinds, shares=told)
    return {records.OPENED: node.stage_store.answered("unmask", asked, found.without_secrets(), packet)}


def _where(node: Node, content: Content) -> tuple[int, int]:
    """Phase and round of a message. Raises PacketError (`malformed`) if the run's updates are not masked."""
    _masks(node)
    return node.phase(content.integer("phase")), round_of(content)


def _masks(node: Node) -> Masks:
    masks = node.setup.aggregation_of_run.masks
    if masks is None:
        raise PacketError("malformed", "a stage of a secure sum was asked for, and this run's sums are plain ones")
    return masks


def _graph(node: Node, participants: int) -> Graph:
    try:
        return _masks(node).graph(participants)
    except FederationError as error:
        raise PolicyError(str(error)) from error


def _context(node: Node, phase: int, round: int) -> bytes:
    return keys.context_of(node.setup.run_key, phase, round)


def _line(text: str) -> Bytes:
    return np.frombuffer(bytes.fromhex(text), dtype=np.uint8)


def _require_roll(
    node: Node,
    found: Remembered,
    roll: Bytes,
    users: Sequence[int],
    theirs: Sequence[Announced],
    graph: Graph,
    context: bytes,
) -> None:
    """Raise PacketError or PolicyError if nobody should share secrets with those on a roll.

    Args:
        node: The node.
        found: What it remembers.
        roll: uint8 [participants, bytes].
        users: How many each was asked for.
        theirs: What its neighbours have announced.
        graph: Among so many participants.
        context: Of the sum.
    """
    policy = node.policy
    if policy and len(roll) < policy.min_cohort:
        raise PolicyError(
            f"a secure sum over {len(roll)} nodes: this site is in none of fewer than {policy.min_cohort}"
        )
    if sum(users) > MOST_USERS:
        raise PacketError("wrong_roll", f"a sum over {sum(users)} users: at most {MOST_USERS} can be added up")
    lines = [line.tobytes() for line in roll]
    own = Announced.unpacked(_line(found.announced))
    if any(before >= after for before, after in pairwise(lines)):
        raise PacketError("wrong_roll", "the roll of a secure sum should name everybody once, in order")
    if own.digest().tobytes() not in lines:
        raise PacketError("wrong_roll", "the roll of a secure sum is without this node, which has announced itself")
    place = lines.index(own.digest().tobytes())
    if users[place] != own.users:
        raise PacketError("wrong_roll", f"the roll has {users[place]} users here, {own.users} were announced")
    for number, other in zip(neighbours(roll, graph.degree)[place].tolist(), theirs, strict=True):
        if other.digest().tobytes() != lines[number] or other.users != users[number]:
            raise PacketError("wrong_roll", "a neighbour has announced something else than the roll says")
        other.require_signed(context)
        other.require_keys()
        if policy and policy.pins and other.identity.hex() not in policy.pins:
            raise PolicyError(f"{other.identity.hex()} is to be a neighbour, and is not among this site's pins")
    for what in ("identity", "channel", "mask"):
        if len({getattr(each, what) for each in (own, *theirs)}) <= len(theirs):
            raise PacketError("wrong_roll", f"one key ({what}) stands on the roll of a secure sum more than once")


def _require_status(
    node: Node, found: Remembered, status: Bytes, place: int, mine: NDArray[np.int64], graph: Graph
) -> None:
    """Raise PolicyError if what is said to have become of everybody is no reason to tell any share.

    Args:
        node: The node.
        found: What it remembers.
        status: uint8 [participants].
        place: The node's own place among them.
        mine: int64 [degree], its neighbours'.
        graph: Among so many participants.
    """
    if status.max() > max(Status) or status[place] != Status.SURVIVED:
        raise PolicyError("the list of who is lost is none, or says that this node is, which has sent its part")
    if ((status[mine] != Status.ABSENT) != (np.array(found.present) == 1)).any():
        raise PolicyError("the list of who is lost does not fit who sent shares: a mask would be told of no use")
    survivors = int((status == Status.SURVIVED).sum())
    near = int((status[mine] == Status.SURVIVED).sum())
    if near < graph.threshold:
        raise PolicyError(
            f"{near} of {graph.degree} neighbours have stayed, a sum is known to {graph.threshold} or more"
        )
    if node.policy and survivors < node.policy.min_cohort:
        raise PolicyError(
            f"a secure sum over the {survivors} nodes that have stayed: this site is in none of fewer than "
            f"{node.policy.min_cohort}"
        )
    stayed = np.array(found.users)[status == Status.SURVIVED].tolist()
    left = noised_users(stayed, _masks(node).corrupt, len(status))
    if left < (needed := node.setup.stages.survivors):
        raise PolicyError(
            f"{sum(stayed)} users have stayed, {left} of them surely on nodes that do not tell their noise, and the "
            f"noise on their sum is enough from {needed} on: nobody is to know it"
        )


def _places(found: Remembered, graph: Graph) -> tuple[int, NDArray[np.int64]]:
    """The node's own place on the roll, and its neighbours'."""
    roll = _line(found.roll).reshape(len(found.users), -1)
    own = Announced.unpacked(_line(found.announced)).digest()
    place = int(np.flatnonzero((roll == own).all(1))[0])
    return place, neighbours(roll, graph.degree)[place]
