"""The global model on the server: its phases, what of it is frozen, and the packets that carry it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from flwr.app import Array
from torch import Tensor

from exchanges import records
from federation.reports import report_start
from federation.versions import Frozen, FrozenBytes, Merged, Merges
from fedrec.core.errors import FederationError
from fedrec.core.registry import MemberConfig
from fedrec.core.rng import derive, generator
from fedrec.core.tensors import Spec, Tensors, content_digest, spec_of
from fedrec.wire.protocol import Setup, frozen_format
from peft_embeddings.model import Model, models_of
from peft_embeddings.versions import held_format, merged_format, next_version, version_name

_ITEMS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Phase:
    """Consecutive rounds in which the same tensors are trained.

    Attributes:
        name: Tells it from the others of a run.
        rounds: How many.
        embedding: What is trained.
        merge_every: Rounds between two merges of the correction into the base table; 0 for none.
    """

    name: str
    rounds: int
    embedding: MemberConfig
    merge_every: int = 0


@dataclass
class ServerState:
    """The global model between two rounds.

    Attributes:
        phase: Number of the phase in the plan.
        trainable: What is trained and sent.
        frozen: What devices hold: what was sent once, and tables as steps have moved them there.
        frozen_digest: Names `frozen`: the digest of its content or, after a merge or a step, the name of the version;
            empty if nothing is held.
        optimiser: The server optimiser's own tensors.
        kept: What the embedding keeps on the server, for items that come later.
        merges: What was merged into the base table in this phase, or the steps of its tables.
    """

    phase: int
    trainable: Tensors
    frozen: Tensors
    frozen_digest: str
    optimiser: Tensors
    kept: Tensors = field(default_factory=dict)
    merges: Merges = field(default_factory=Merges)


class ServerModel:
    """The model of a run from phase to phase.

    Attributes:
        state: Where it stands; the strategy replaces it after each round.
        models: The model of each phase.
        once: What is frozen in the present phase, as a wrapped packet by the digest of its content.
        counts: Users per item [items] as the backbone had them counted; None before that, or if it had not.
        reports: What the embedding of each phase so far said of its start, by the phase's name.
        eligible: The public list of items that may be recommended, wrapped.
    """

    def __init__(
        self, setup: Setup, plan: Sequence[Phase], base: Tensor, eligible: Tensors, texts: Tensors | None = None
    ) -> None:
        """The model before the first round of the plan, over the base table [items, dim].

        `eligible` is the public list of items that may be recommended, as it is sent; `texts` is what the backbone
        makes of the items' texts, None for one that makes nothing.
        """
        self.eligible = records.wrap(frozen_format(spec_of(eligible)).encode(0, 0, eligible))
        self._sent: tuple[tuple[int, int], ServerState | None, Array | None] = ((0, 0), None, None)
        self.models = models_of(setup)
        self.once: dict[str, Array] = {}
        self.counts: Tensor | None = None
        self.reports: dict[str, dict[str, float]] = {}
        self._setup = setup
        self._plan = plan
        self._texts = texts
        self.state = self._entered(0, base, setup.backbone_of_run.init_shared(generator(setup.seed, "shared")))

    def restore(self, state: ServerState, counts: Tensor | None, reports: Mapping[str, Mapping[str, float]]) -> None:
        """Stand where a checkpoint says: its state, users per item, and reports of the phases so far."""
        self.counts = counts
        self.reports = {phase: dict(facts) for phase, facts in reports.items()}
        self.state = self._frozen(state)

    @property
    def model(self) -> Model:
        """The model of the present phase."""
        return self.models[self.state.phase]

    @property
    def phase_name(self) -> str:
        """Name of the present phase."""
        return self._plan[self.state.phase].name

    def enters(self, round: int) -> bool:
        """Whether `round` is the first of the phase after the present one."""
        return round == 1 + sum(phase.rounds for phase in self._plan[: self.state.phase + 1])

    def advance(self, round: int) -> None:
        """Enter the phase to which `round` belongs, if it is the first of it: its base is what was trained so far."""
        if self.enters(round):
            model, state = self.model, self.state
            parts = torch.split(torch.arange(self._setup.n_items), _ITEMS_AT_ONCE)
            base = torch.cat([model.item_vectors(state.trainable, state.frozen, part) for part in parts])
            self.state = self._entered(state.phase + 1, base, model.shared(state.trainable))

    def _entered(self, phase: int, base: Tensor, shared: Tensors) -> ServerState:
        rng = generator(self._setup.seed, "embedding", self._plan[phase].name)
        model = self.models[phase]
        trainable, frozen, kept = model.start(base, shared, rng, self.counts, self._texts)
        frozen |= {name: trainable[name] for name in model.stepped}
        name = self._plan[phase].name
        self.reports[name] = report_start(name, model.embedding, frozen)
        # One layout in memory, before a checkpoint and after it: the last bits of a product depend on it.
        trainable = {key: tensor.contiguous() for key, tensor in trainable.items()}
        return self._frozen(ServerState(phase, trainable, frozen, "", {}, kept))

    def _frozen(self, state: ServerState) -> ServerState:
        """The state with the name of what is held, whose packet is made; it says since which round that is so.

        Before the first merge, what is held becomes what its packet decodes to. Of a state that was here before this
        changes nothing.
        """
        self.once, self._content = {}, ""
        if not state.frozen:
            return replace(state, frozen_digest="")
        merges, frozen = state.merges, state.frozen
        fmt = held_format(self._setup, self.models[state.phase], merged=bool(merges.count))
        packet = fmt.encode(state.phase, merges.round, frozen, seed=None)
        if not merges.count:
            frozen = fmt.decode(packet).tensors
        self._content = content_digest(frozen)
        name = state.frozen_digest if merges.count else self._content
        self.once = {name: records.wrap(packet)}
        return replace(state, frozen=frozen, frozen_digest=name)

    def freeze_counts(self, counts: Tensor) -> None:
        """Users per item [items] have been counted: what of them the backbone reads is frozen from here on."""
        self.counts = counts
        frozen = self.state.frozen | self.model.backbone_frozen(counts)
        self.state = self._frozen(replace(self.state, frozen=frozen))

    def merge(self, round: int) -> bool:
        """If it is due after `round`, make the next version of what devices hold; whether it was due.

        That is a step of the tables that they hold, or the correction that is merged into the base table. It is made of
        what its packet decodes to, so that every device can make the same. A merge does not come at the end of a phase;
        a step does, for nothing would be ranked, or be the next phase's base on devices, but what they hold.
        """
        phase, model = self._plan[self.state.phase], self.model
        left = sum(each.rounds for each in self._plan[: self.state.phase + 1]) - round
        every = self._setup.downlink_of_run.every if model.steps else phase.merge_every
        due = (phase.rounds - left) % every == 0 if every and left else model.steps
        if not due:
            return False
        state = self._stepping(round) if model.steps else self._merging(round)
        self.state = self._frozen(state)
        return True

    def _stepping(self, round: int) -> ServerState:
        """The state after a step: the server's own tables stay as they are, those that devices hold come closer.

        Raises FederationError if the server's tables are not finite.
        """
        state, downlink = self.state, self._setup.downlink_of_run
        change = {name: state.trainable[name] - state.frozen[name] for name in self.model.stepped}
        if not all(bool(table.isfinite().all()) for table in change.values()):
            raise FederationError(
                f"after round {round} the model is not finite: its training has diverged; train anew with a lower "
                "learning rate"
            )
        coded = downlink.coded(change, derive(self._setup.seed, "codec", "step", round))
        return self._version(round, coded, seed=None)

    def _merging(self, round: int) -> ServerState:
        """The state after a merge: the correction and the server's optimiser start anew.

        The optimiser's moments belong to the factors that are gone. What the backbone shares goes on as it is.
        """
        phase, state, model = self._plan[self.state.phase], self.state, self.model
        number = state.merges.count + 1
        restarted = model.embedding.restart(generator(self._setup.seed, "embedding", phase.name, "merge", number))
        if restarted is None:
            raise ValueError(f"embedding={phase.embedding.name} does not merge: the configuration was not checked")
        trained = {name: state.trainable[name] for name in model.merging}
        merged = self._version(round, trained, derive(self._setup.seed, "codec", "merge", round))
        return replace(merged, trainable=model.named(restarted, model.shared(state.trainable)), optimiser={})

    def _version(self, round: int, merged: Tensors, seed: int | None) -> ServerState:
        """The state with the version of what devices hold that the packet of `merged` makes."""
        state, model, fmt = self.state, self.model, merged_format(self._setup, self.model)
        packet = fmt.encode(state.phase, round, merged, seed=seed)
        name, before = version_name(state.frozen_digest, packet), self.once[state.frozen_digest]
        made = Merged(state.frozen_digest, name, records.wrap(packet))
        return replace(
            state,
            frozen=next_version(self._setup, model, state.frozen, fmt.decode(packet).tensors),
            frozen_digest=name,
            merges=state.merges.then(made, round, self.frozen_bytes.whole, before),
        )

    def packet(self, round: int, kept: int, part: Spec | None = None) -> Array:
        """The model as every message of `round` carries it, wrapped once for all of them.

        `kept` is the earliest round to which the server may go back: older private tensors are needed no more. `part`
        is what of its trained tensors is sent; None: all that travels.
        """
        if part is not None:
            return self._packet(round, kept, part)
        sent_in, state, packet = self._sent
        if packet is None or state is not self.state or sent_in != (round, kept):
            packet = self._packet(round, kept, self.model.trainable)
            self._sent = (round, kept), self.state, packet
        return packet

    def _packet(self, round: int, kept: int, spec: Spec) -> Array:
        fmt = self._setup.model_format(spec)
        seed = derive(self._setup.seed, "codec", round)
        sent = {name: self.state.trainable[name] for name in fmt.spec}
        return records.wrap(fmt.encode(self.state.phase, round, sent, [float(kept)], seed))

    def fields(self) -> dict[str, records.Field]:
        """What a message says about the model that it carries, beside phase and round."""
        return {records.HOLDS: self.state.frozen_digest, records.CONTENT: self._content}

    @property
    def holdings(self) -> Frozen:
        """What everybody must hold who trains the present model, or is ranked with it."""
        return Frozen({self._setup.eligible: self.eligible, **self.once}, self.state.merges, self.frozen_bytes)

    @property
    def frozen_bytes(self) -> FrozenBytes:
        """Bytes of what devices hold in the present phase, as it is sent whole, and of what was merged into it."""
        model, merges = self.model, self.state.merges
        if not model.held:
            return FrozenBytes(0)
        start, whole = (held_format(self._setup, model, merged=merged).size() for merged in (False, True))
        return FrozenBytes(whole, merges.count, merges.sizes, start)
