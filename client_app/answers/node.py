"""A node: the users who live on it, and what it does when the server asks, free of any framework."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client_app.answers.granting import require_memory, require_users
from client_app.answers.keeping import require_held
from client_app.homes.home import Home, KeptRun, Place, SimulatedHome, SiteHome, home_of
from client_app.homes.policy import Policy, policy_of
from client_app.homes.site import Site
from client_app.homes.training_budget import spend_training
from client_app.homes.users import Cohort, LocalUsers
from client_app.stores.frozen import FrozenStore, MissingFrozenError, resident, tidy
from client_app.stores.losses import Losses
from client_app.stores.stages import StageStore
from client_app.stores.store import PrivateStore
from client_app.training.cohort import CohortEngine
from client_app.training.engine import Engine, GlobalModel, moving
from client_app.training.oracle import OracleEngine
from client_app.training.timing import Timer
from exchanges import records
from exchanges.declaration import Participant
from fedrec.backbones.base import Backbone
from fedrec.backbones.split import PLAIN, clashes
from fedrec.core.errors import ConfigError, PacketError
from fedrec.core.keys import keys_digest
from fedrec.core.rng import derive
from fedrec.core.tensors import Spec, Tensors, content_digest
from fedrec.data.negatives import NegativeSampler
from fedrec.groupings.base import Users
from fedrec.networks.simulated import SimulatedNetwork
from fedrec.optim.base import Recipe
from fedrec.wire.eligible import unpack_eligible
from fedrec.wire.item_labels import unpack_labels
from fedrec.wire.packet import PacketFormat
from fedrec.wire.protocol import Setup, checkpoint_round
from fedrec.wire.updates import NodeUpdate
from peft_embeddings.model import Model, models_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from client_app.training.split import SplitEngine

log = logging.getLogger("fedrec")

ENGINES: dict[str, type[Engine]] = {"cohort": CohortEngine, "oracle": OracleEngine}


class Received(NamedTuple):
    """A model as a message brought it: decoded once, for all that is to be done with it.

    Attributes:
        phase: The phase to which it belongs.
        round: The round in which it was sent.
        group: The group whose model it is, by its place among the run's.
        model: The model.
        checkpoint_round: The earliest round to which the server may go back.
    """

    phase: int
    round: int
    group: int
    model: GlobalModel
    checkpoint_round: int


@dataclass(frozen=True)
class Node:
    """One node of one run: everything that stays the same from message to message."""

    setup: Setup
    place: Place | Site | KeptRun

    @cached_property
    def losses(self) -> Losses:
        """What was found lost or damaged here since the server was told last."""
        return Counter()

    @cached_property
    def _home(self) -> Home:
        """Where the node's users come from."""
        return home_of(self.place, self.setup, self.losses)

    @cached_property
    def secret(self) -> int:
        """The secret root: of users' keys, negatives and noise."""
        return self._home.secret

    @cached_property
    def users(self) -> LocalUsers:
        """The node's users."""
        interactions, chosen = self._home.users(lambda: self.frozen_store)
        return LocalUsers(interactions, chosen, self.secret, validation=self.setup.validation)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """The group of each of the users, int64 [users], by its place among the run's."""
        if len(self.setup.groups) == 1:
            return np.zeros(len(self.users), dtype=np.int64)
        return self.assigned(self.users.training(np.arange(len(self.users))))

    def assigned(self, cohort: Cohort) -> NDArray[np.int64]:
        """The group of each of these users, int64 [users]. Raises MissingFrozenError if labels of items lack."""
        return self.setup.grouping_of_run.assign(self._told(cohort))

    def nearest(self, cohort: Cohort, here: Sequence[int]) -> NDArray[np.int64]:
        """For each of these users the group among `here`, ascending, whose model is to serve it, int64 [users].

        Raises MissingFrozenError if labels of items lack.
        """
        return self.setup.grouping_of_run.nearest(self._told(cohort), here)

    def _told(self, cohort: Cohort) -> Users:
        word = self.place.group if isinstance(self.place, Site) else ""
        return Users(cohort.keys, cohort.offsets, cohort.items, word, self.item_labels)

    @cached_property
    def item_labels(self) -> NDArray[np.uint8]:
        """The label of each item, uint8 [items], if groups go by them. Raises MissingFrozenError, PacketError."""
        labels = self.setup.grouping_of_run.labels
        if not labels:
            return np.zeros(0, dtype=np.uint8)
        held = self.frozen_store.get(self.setup.item_labels)
        if held is None:
            raise MissingFrozenError(self.setup.item_labels)
        return unpack_labels(held, self.setup.n_items, labels)

    def participant(self, slots: NDArray[np.int64]) -> Participant:
        """The users in `slots`, as both sides know them."""
        return Participant(self.users.keys[slots], self.groups[slots], self.grade)

    @property
    def grade(self) -> str:
        """What the site says of its devices."""
        return self.place.grade if isinstance(self.place, Site) else ""

    @cached_property
    def data_digest(self) -> str:
        """Names the users and what they train on."""
        cohort = self.users.training(np.arange(len(self.users)))
        columns = {"keys": cohort.keys.astype(np.int64), "offsets": cohort.offsets, "items": cohort.items}
        return content_digest({name: torch.from_numpy(column) for name, column in columns.items()})

    @cached_property
    def named(self) -> str:
        """What the server has to name with every message if it knows the users who are here now."""
        return keys_digest(self.users.keys)

    @cached_property
    def frozen_store(self) -> FrozenStore:
        """What the server sent once."""
        return FrozenStore(self._home.state_dir, self.losses)

    @cached_property
    def private_store(self) -> PrivateStore:
        """The users' private tensors."""
        home = self._home
        return PrivateStore(
            home.state_dir,
            self.setup.run_key,
            self.backbone.private,
            synced=home.synced,
            reading=home.reading,
            losses=self.losses,
        )

    @cached_property
    def stage_store(self) -> StageStore:
        """What it must remember between the stages of a secure sum."""
        name = str(self.place.partition) if isinstance(self.place, Place) else "site"
        return StageStore(self._home.state_dir, self.setup.run_key, name, synced=self._home.synced)

    @property
    def identity(self) -> Ed25519PrivateKey:
        """Its own, by which other nodes know it."""
        home = self._home
        assert isinstance(home, SimulatedHome | SiteHome), "nobody trains in a run that is kept"
        return home.identity

    @property
    def backbone(self) -> Backbone:
        """The backbone of the run."""
        return self.setup.backbone_of_run

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """The model of each phase."""
        return models_of(self.setup)

    @cached_property
    def sampler(self) -> NegativeSampler:
        """Draws from the public list of items that may be negatives and be recommended."""
        return _sampler(self.setup.eligible, self.setup.n_items, self.frozen_store)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        made = self.setup.recipe_of_run
        if problems := made.refusals(self.backbone):
            raise ConfigError(problems)
        return made

    @property
    def policy(self) -> Policy | None:
        """What this site grants, whatever is asked for; None in a simulation."""
        return policy_of(self.place) if isinstance(self.place, Site) else None

    @cached_property
    def engine(self) -> Engine:
        """The engine that the setup names."""
        setup = self.setup
        if setup.engine not in ENGINES:
            raise PacketError("malformed", f"engine {setup.engine!r} is not one of {sorted(ENGINES)}")
        return ENGINES[setup.engine](
            self.recipe,
            self.sampler,
            setup.stages_of(self.grade),
            setup.pairs_at_once,
            fresh=isinstance(self.place, Site),
        )

    @cached_property
    def split_engine(self) -> SplitEngine:
        """Trains where the backbone is split. Raises ConfigError if what the setup names does not go with that."""
        from client_app.training.split import SplitEngine  # who trains the whole model need not wait for it

        if problems := self.split_clashes():
            raise ConfigError(problems)
        fresh = isinstance(self.place, Site)
        return SplitEngine(self.recipe, self.sampler, self.setup.stages_of(self.grade), fresh=fresh)

    def split_clashes(self) -> list[str]:
        """What the setup names that does not go with a split backbone, one line each."""
        return clashes("a split backbone", {family: str(getattr(self.setup, family)["name"]) for family in PLAIN})

    def model_format(self, phase: int) -> PacketFormat:
        """Format of the model packets of a phase. Raises PacketError (`malformed`) if the run has no such phase."""
        return self.setup.model_format(self.model(phase).trainable)

    def model(self, phase: int) -> Model:
        """The model of a phase. Raises PacketError (`malformed`) if the run has no such phase."""
        return self.models[self.phase(phase)]

    def phase(self, number: int) -> int:
        """The number of a phase. Raises PacketError (`malformed`) if the run has no such phase."""
        if not 0 <= number < len(self.setup.phases):
            raise PacketError("malformed", f"phase {number} is none of the run's {len(self.setup.phases)}")
        return number

    def receive(
        self, phase: int, round: int, group: int, packet: bytes, frozen: str, part: Spec | None = None
    ) -> Received:
        """The model of a group in a packet, over the frozen tensors of that digest.

        `part` is what of its trained tensors the packet has; None: all. Raises MissingFrozenError if they lack.
        """
        form = self.model_format(phase) if part is None else self.setup.model_format(part)
        received = form.decode(packet, phase=phase, round=round)
        device = _device()
        held = resident(self.frozen_store, frozen, device) if frozen else {}
        model = self.model(phase)
        require_held(model, held, frozen)
        trainable, under = model.over({name: tensor.to(device) for name, tensor in received.tensors.items()}, held)
        back_to = checkpoint_round(received)
        tidy(self.frozen_store, records.grouped(self.setup.run_key, self.setup.groups[group]), frozen, back_to)
        return Received(phase, round, group, GlobalModel(model, trainable, under), back_to)

    @cached_property
    def network(self) -> SimulatedNetwork | None:
        """The simulated network of the run; None: the time that devices take is their own."""
        network = self.setup.network_of_run
        return network if isinstance(network, SimulatedNetwork) and not isinstance(self.place, Site) else None

    def timer(
        self, network: SimulatedNetwork, received: Received, slots: NDArray[np.int64], down: NDArray[np.int64]
    ) -> Timer:
        """Times the users in `slots`, int64 [users], who download so many bytes, while they train."""
        steps = len(moving(self.recipe.local_steps(), self.backbone))
        form = self.setup.update_format(received.model.model.trainable, 1)
        return Timer(network, self.users.keys[slots], down, steps, form.least(), form.head)

    def train(self, received: Received, slots: NDArray[np.int64], timer: Timer | None = None) -> bytes:
        """Train the users in `slots`, all of the model's group; the encoded sum of what they give."""
        update = self.trained(received, slots, timer)
        fmt = self.setup.update_format(received.model.model.trainable, len(slots))
        told = update.scalars()
        if fmt.scalars > len(told):  # of a sum in the place of packets whose lengths nobody sees
            told = (*told, float(update.packet_bytes))
        # What each user gives was rounded before it was added up: here nothing is but to what it is already.
        return fmt.encode(received.phase, received.round, update.total, told, seed=None)

    def trained(self, received: Received, slots: NDArray[np.int64], timer: Timer | None = None) -> NodeUpdate:
        """Train the users in `slots`, all of the model's group; the sum of what they give."""
        _, round, _, model, checkpoint_round = received
        cohort = self.users.training(slots)
        if self.policy:
            require_users("an update", len(slots), self.policy.min_users_in_update)
            require_memory(self, self.policy, cohort, trains=True)
            assert isinstance(self.place, Site), "only a site has a policy"
            spend_training(self.place.state_dir, self.policy, self.setup, round, cohort.keys)
        private, found = self.starts(cohort.keys, before=round)
        trained = self.engine.round(model, cohort, private, derive(self.secret, "train", round), timer)
        if self.policy:
            require_users("an update", trained.update.users, self.policy.min_users_in_update)
        kept = {name: tensor[trained.taken] for name, tensor in trained.private.items()}
        self.private_store.save(round, cohort.keys[trained.taken], kept, checkpoint_round)
        if self.setup.stages.tells:
            trained.update.cold = int((~found & trained.taken).sum())
        return trained.update

    def starts(self, keys: NDArray[np.uint64], before: int) -> tuple[Tensors, NDArray[np.bool_]]:
        """What users begin a round or a ranking with, and who of them has trained in rounds earlier than `before`."""
        private, trained = self.private(keys, before)
        if self.engine.recipe.private_anew:
            private |= self.backbone.init_private(self.setup.seed, keys)
        return private, trained

    def private(self, keys: NDArray[np.uint64], before: int) -> tuple[Tensors, NDArray[np.bool_]]:
        """The users' private tensors from rounds earlier than `before`; who has any."""
        private, found = self.private_store.load(keys, before)
        new = self.backbone.init_private(self.setup.seed, keys[~found])
        for name, tensor in private.items():
            tensor[torch.from_numpy(~found)] = new[name]
        return private, found


def _device() -> torch.device:
    """Where users train: on the GPU that the runtime gave this worker, if it gave one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=4)
def _sampler(digest: str, n_items: int, store: FrozenStore) -> NegativeSampler:
    """One for all nodes of a run that share this worker; its content is named by its digest."""
    held = store.get(digest)
    if held is None:
        raise MissingFrozenError(digest)
    return NegativeSampler(unpack_eligible(held, n_items))
