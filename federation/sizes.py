"""What a run moves and who holds it, worked out from its configuration and the number of items alone.

Nothing is trained and no data is read: a packet's size is known beforehand, so these are, to the byte, what the meter
of a real run counts; but for updates that list the rows which a user changed, of which there is a bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exchanges import members
from exchanges.declaration import Declaration, Participant, Regular
from exchanges.secure import Cost, cost
from exchanges.split import crossing_bytes, stages_of
from federation.plan import plan_of
from federation.server_model import Phase
from federation.uplink import most_changed
from federation.versions import expected_bytes
from fedrec.config.schema import RunConfig
from fedrec.core import registry
from fedrec.core.tensors import Spec, TensorSpec
from fedrec.optim.base import Recipe
from fedrec.stages.base import Stage
from fedrec.wire.eligible import eligible_spec
from fedrec.wire.item_labels import labels_size
from fedrec.wire.packet import PacketFormat
from fedrec.wire.protocol import Setup, frozen_format
from peft_embeddings.model import Model, models_of
from peft_embeddings.versions import held_format, merged_format

EACH_ROUND, ONCE, NEVER = "each round", "once", "never"
_DEVICE = Participant()
"""A user with a device of its own."""
DEVICES = 1000
"""Of a round, where nothing says how many there are."""
ALL, SERVER, OWN = "server, devices", "server", "own device"


@dataclass(frozen=True)
class Row:
    """One tensor of a phase.

    Attributes:
        tensor: Its name.
        shape: Its shape.
        dtype: Its type.
        bytes: What it adds to a packet; of a tensor that never crosses, its size in memory.
        held_by: `server, devices`, the `server` alone, or the `own device` of the user whom it belongs to.
        crosses: When it travels: `each round` in which a user is chosen, down and up; `once` a phase, down; or `never`.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    held_by: str
    crosses: str


@dataclass(frozen=True)
class PhaseSizes:
    """One phase of the plan.

    Attributes:
        name: Of the phase.
        rounds: How many it has.
        embedding: What is trained in it.
        tensors: Everything that is trained, frozen or kept in it.
        up: Bytes of the update packet, for each round in which a user is chosen; the most of them, where a device lists
            the rows that its user changed.
        least_up: The fewest: of a user who changed nothing.
        changed: The most rows of its tables that a user changes, with which `up` reckons; None: all of them.
        down: Bytes of the model packet.
        once: Bytes of the frozen packet, the first time that a user is chosen in the phase; 0 if nothing is frozen.
        whole: Bytes of the frozen packet after a merge, when it is exact whatever the codec; 0 if nothing is frozen.
        merge_every: Rounds between two merges of the correction into the base table, or two steps of the tables that
            devices hold; 0 for none.
        merge: Bytes of the packet of a merge, or the most of a step, down, for each that a user missed since it was
            last chosen, or `whole` where that is less; 0 for no merges.
        steps: Whether these are steps.
        masks: What a secure sum adds to it, part of `up` and `down`; None: there is none.
        crossing: Hidden states of a split model and gradients of them, part of `up` and `down`.
    """

    name: str
    rounds: int
    embedding: str
    tensors: tuple[Row, ...]
    up: int
    least_up: int
    changed: int | None
    down: int
    once: int
    whole: int
    merge_every: int
    merge: int
    steps: bool
    masks: Cost | None = None
    crossing: int = 0


@dataclass(frozen=True)
class Exchange:
    """What every user's device moves, chosen or not, each time that an exchange beside the rounds is carried.

    Attributes:
        every: Rounds between two times.
        up: Bytes up: of all devices alike, or the mean over users where they differ.
        down: Bytes down.
        least_up: The fewest that a device moves up.
        most_up: The most.
    """

    every: int
    up: float
    down: int
    least_up: int
    most_up: int


@dataclass(frozen=True)
class Totals:
    """Bytes of a user who is chosen in the mean share of so many rounds, and in some round of every phase.

    `up` and `down` have what it exchanges with others between the rounds, where it does. Where a device lists the rows
    that its user changed, `up` is a bound.
    `merges` is what it downloads of merges in expectation: what it missed depends on when it is chosen. A user who is
    chosen in every round downloads each of them, and moves exactly that.
    """

    rounds: int
    up: float
    down: float
    one_time: int
    merges: float


@dataclass(frozen=True)
class OnTheWay:
    """Simulated seconds of a user's round beside its work, latency included.

    Attributes:
        median: Of a device in the middle.
        slow: Of one that is slower than 99 of a hundred.
    """

    median: float
    slow: float


@dataclass(frozen=True)
class Sizes:
    """What a run moves.

    Attributes:
        items: Rows of the catalogue.
        fraction: Share of the users who are chosen in a round.
        joining: Bytes that a user's device moves once to join: setup and list of eligible items down, labels of items
            where users are grouped by them, its key up, and its report of items where the backbone has them counted.
        metrics: Bytes of the metrics up, for each ranking of a split. A device that does not train in the same message
            downloads the model for it too. Not part of the totals.
        phases: The plan.
        run: A mean user's bytes over the rounds of the configuration.
        per_1000_rounds: The same over 1,000 rounds: the plan cut off there, or its last phase made longer.
        exchanges: What users exchange beside the rounds, an entry for each number of rounds between two times.
        item_list: Bytes of the ids and titles of the items, which a device with data of its own downloads once to join;
            part of the totals in a deployment alone. None: the catalogue was not read.
        privacy: What the run will have given away about a user at its end; None: it promises nothing.
        times: How long the packets of a round of each phase are on the way, in simulated seconds; None: no network is
            simulated.
    """

    items: int
    fraction: float
    joining: Mapping[str, int]
    metrics: int
    phases: tuple[PhaseSizes, ...]
    run: Totals
    per_1000_rounds: Totals
    exchanges: tuple[Exchange, ...] = ()
    item_list: int | None = None
    privacy: Mapping[str, Any] | None = None
    times: Mapping[str, OnTheWay] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)


def sizes(config: RunConfig, setup: Setup, item_list: int | None = None, users: int | None = None) -> Sizes:
    """The sizes of a run whose clients are told `setup`.

    Args:
        config: The configuration.
        setup: What clients are told.
        item_list: As in `Sizes`.
        users: Of the federation, on which the bytes of secure sums depend; None: rounds are of `DEVICES` devices.

    Raises FederationError if a round has too few for a secure sum.
    """
    chosen = DEVICES if users is None else max(1, int(config.federation.fraction * users + 0.5))
    strategy: Any = config.strategy
    enrolment = members.Enrolment(setup)
    joining = {
        "setup": enrolment.down_bytes(_DEVICE) - (labels := labels_size(setup.n_items, setup.grouping_of_run.labels)),
        "key": enrolment.up_bytes(_DEVICE),
        "eligible items": frozen_format(eligible_spec(setup.n_items)).size(),
    }
    if labels:
        joining["labels of items"] = labels
    if config.runtime == "deployment" and item_list is not None:
        joining["item list"] = item_list
    if setup.backbone_of_run.item_counting is not None:
        joining["report of items"] = members.Counting(setup.n_items).up_bytes(_DEVICE)
    plan: Sequence[Phase] = plan_of(config)
    privacy: Stage = registry.privacies.get(config.privacy.name)(config.privacy)
    each = zip(plan, models_of(setup), strict=True)
    phases = tuple(_phase(phase, model, setup, setup.recipe_of_run, privacy, chosen) for phase, model in each)
    once, rounds = sum(joining.values()), sum(phase.rounds for phase in phases)
    exchanges = _exchanges(registry.strategies.get(strategy.name).regular(config, setup))
    fraction = config.federation.fraction * setup.network_of_run.availability
    return Sizes(
        items=setup.n_items,
        fraction=fraction,
        joining=joining,
        metrics=members.Ranking(setup, {}, ["test"]).up_bytes(_DEVICE),
        phases=phases,
        run=_totals(phases, rounds, fraction, once, exchanges),
        per_1000_rounds=_totals(phases, 1000, fraction, once, exchanges),
        exchanges=exchanges,
        item_list=item_list,
    )


def expected(found: Sizes, rounds: int) -> float:
    """Bytes per user that a run is expected to have moved after so many rounds; at most, where updates are lists.

    In so few rounds that not everybody is chosen in one of a phase, not everybody has been sent what is frozen in it.
    """
    total, left = float(sum(found.joining.values())), rounds
    for phase in found.phases:
        here = min(left, phase.rounds)
        total += found.fraction * here * (phase.up + phase.down) + (1 - (1 - found.fraction) ** here) * phase.once
        total += expected_bytes(phase.whole, phase.once, phase.merge, here, phase.merge_every, found.fraction)
        left -= here
    for exchange in found.exchanges:
        total += (rounds - 1) // exchange.every * (exchange.up + exchange.down)
    return total


def _exchanges(regular: Sequence[Regular]) -> tuple[Exchange, ...]:
    """Those of equal intervals together."""
    found = []
    for every in sorted({each.every for each in regular}):
        declared = [each.declared for each in regular if each.every == every]
        ranges = [each.range_up() for each in declared]
        up, down = sum(each.expected_up() for each in declared), sum(each.down_bytes(_DEVICE) for each in declared)
        least, most = sum(least for least, _ in ranges), sum(most for _, most in ranges)
        found.append(Exchange(every, int(up) if up == int(up) else up, down, least, most))
    return tuple(found)


def _phase(phase: Phase, model: Model, setup: Setup, recipe: Recipe, privacy: Stage, devices: int) -> PhaseSizes:
    training, split = members.Training(setup, model.trainable), model.backbone.split
    (down,) = training.down(_DEVICE).values()
    (up,) = training.up(_DEVICE).values()
    held, whole = (held_format(setup, model, merged=merged) for merged in (False, True))
    every = setup.downlink_of_run.every if model.steps else phase.merge_every
    least, most = training.range_up()
    changed = None
    uplink = setup.stages.uplink
    if uplink.tells_rows and (changed := most_changed(model, recipe, privacy)) is not None:
        most = up.head + uplink.most(model.trainable, changed)
    masks = cost(setup, model.trainable, devices) if setup.aggregation_of_run.masked else None
    if masks:
        least = most = masks.up
    stages: Sequence[Declaration] = [training]
    middle: Spec = {}
    if split is not None:
        stages = stages_of(setup, model)
        least = most = sum(stage.up_bytes(_DEVICE) for stage in stages)
        middle = {model.backbone_name(name): entry for name, entry in split.middle.items()}
    private = {f"private.{name}": entry for name, entry in model.backbone.private.items()}
    rows = [
        *_sent(down, EACH_ROUND),
        *_sent(held, ONCE),
        *(_stays(name, entry, SERVER) for name, entry in {**model.embedding.kept, **middle}.items()),
        *(_stays(name, entry, OWN) for name, entry in private.items()),
    ]
    return PhaseSizes(
        name=phase.name,
        rounds=phase.rounds,
        embedding=phase.embedding.name,
        tensors=tuple(rows),
        up=most,
        least_up=least,
        changed=None if changed is None else sum(changed.values()),
        down=sum(stage.down_bytes(_DEVICE) for stage in stages) + (masks.down if masks else 0),
        once=held.size() if model.held else 0,
        whole=whole.size() if model.held else 0,
        merge_every=every,
        merge=merged_format(setup, model).size() if every else 0,
        steps=model.steps,
        masks=masks,
        crossing=crossing_bytes(stages),
    )


def _sent(packet: PacketFormat, crosses: str) -> Iterator[Row]:
    for name, entry in packet.spec.items():
        alone: Spec = {name: entry}
        yield Row(name, entry.shape, entry.dtype, packet.codec.size(alone), ALL, crosses)


def _stays(name: str, entry: TensorSpec, held_by: str) -> Row:
    return Row(name, entry.shape, entry.dtype, entry.nbytes, held_by, NEVER)


def _totals(
    phases: Sequence[PhaseSizes], rounds: int, fraction: float, joining: int, exchanges: Sequence[Exchange]
) -> Totals:
    up = down = 0
    once, left, merges = joining, rounds, 0.0
    for phase in phases:
        here = left if phase is phases[-1] else min(left, phase.rounds)
        up, down, left = up + here * phase.up, down + here * phase.down, left - here
        once += phase.once if here else 0
        merges += expected_bytes(phase.whole, phase.once, phase.merge, here, phase.merge_every, fraction)
    all_up, all_down = fraction * up, fraction * down
    for exchange in exchanges:
        times = (rounds - 1) // exchange.every  # never after the last round
        all_up, all_down = all_up + times * exchange.up, all_down + times * exchange.down
    return Totals(rounds, all_up, all_down, once, merges)
