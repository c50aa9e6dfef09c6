"""Where a node's users come from, and where what is theirs is kept: a simulation's shared folders, or a site's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from client_app.homes.site import Site
from client_app.homes.site_data import Told, is_new, prepared_data, require_site
from client_app.stores.frozen import FrozenStore, MissingFrozenError
from client_app.stores.losses import Losses
from client_app.stores.old_runs import forget_old_runs
from fedrec.core.errors import ConfigError
from fedrec.core.keys import simulation_secret
from fedrec.core.rng import derive
from fedrec.core.secret import own_secret
from fedrec.core.shared_folder import require_shared
from fedrec.data.store import open_verified_store
from fedrec.data.types import Interactions
from fedrec.wire.item_list import ItemList, unpack_item_list
from fedrec.wire.protocol import Setup, SimulatedData

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Place(NamedTuple):
    """Which part of the simulated users lives on this node."""

    partition: int
    partitions: int


@dataclass(frozen=True)
class KeptRun:
    """What is left of a simulated run: all its users, to recommend to. Nobody trains there any more.

    Attributes:
        state_dir: What the simulated devices have kept.
        interactions: Gives the users' interactions; asked only where one of them is.
    """

    state_dir: Path
    interactions: Callable[[], Interactions]


class Home(Protocol):
    """What a node has of its own.

    Attributes:
        synced: Whether what is kept must survive a power failure.
        reading: Whether what is kept is only read.
    """

    synced: bool
    reading: bool

    @property
    def state_dir(self) -> Path:
        """The folder in which everything is kept."""

    @property
    def secret(self) -> int:
        """The secret root: of users' keys, negatives and noise."""

    def users(self, frozen: Callable[[], FrozenStore]) -> tuple[Interactions, NDArray[np.int64]]:
        """Interactions, and who of their users lives here; `frozen` is asked only if the data is not prepared yet.

        Raises MissingFrozenError if the list of items lacks then.
        """


@dataclass(frozen=True)
class SimulatedHome:
    """A node of a simulation: every `partitions`-th of the simulated users."""

    place: Place
    setup: Setup
    data: SimulatedData
    synced = False  # where the machine fails on which it is simulated, a device need not outlive it
    reading = False

    @property
    def state_dir(self) -> Path:
        """As in `Home`."""
        return Path(self.data.state_dir)

    @property
    def secret(self) -> int:
        """As in `Home`."""
        return simulation_secret(self.setup.seed)

    @property
    def identity(self) -> Ed25519PrivateKey:
        """Its own, by which other nodes know it: a function of the secret, as all of a simulation is."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        seed = derive(self.secret, "identity", self.place.partition)
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(str(seed).encode()).digest())

    def users(self, frozen: Callable[[], FrozenStore]) -> tuple[Interactions, NDArray[np.int64]]:
        """As in `Home`."""
        interactions = _simulated_data(Path(self.data.interactions), self.setup.n_items)
        return interactions, np.arange(self.place.partition, interactions.users, self.place.partitions)


@lru_cache(maxsize=8)
def _simulated_data(folder: Path, n_items: int) -> Interactions:
    """What all simulated nodes of a worker share: read and compared with its digest once."""
    return open_verified_store(folder, n_items)


@dataclass(frozen=True)
class KeptHome:
    """All users of a simulated run that is kept."""

    run: KeptRun
    setup: Setup
    synced = False
    reading = True

    @property
    def state_dir(self) -> Path:
        """As in `Home`."""
        return self.run.state_dir

    @property
    def secret(self) -> int:
        """As in `Home`."""
        return simulation_secret(self.setup.seed)

    def users(self, frozen: Callable[[], FrozenStore]) -> tuple[Interactions, NDArray[np.int64]]:
        """As in `Home`."""
        interactions = self.run.interactions()
        return interactions, np.arange(interactions.users)


@dataclass(frozen=True)
class SiteHome:
    """A site: all users of its own file."""

    site: Site
    setup: Setup
    losses: Losses
    synced = True
    reading = False

    @property
    def state_dir(self) -> Path:
        """As in `Home`."""
        return self.site.state_dir

    @cached_property
    def secret(self) -> int:
        """As in `Home`."""
        return own_secret(self.site.state_dir)

    @property
    def identity(self) -> Ed25519PrivateKey:
        """As in `Home`."""
        from client_app.homes.identity import own_identity

        return own_identity(self.site.state_dir)

    def users(self, frozen: Callable[[], FrozenStore]) -> tuple[Interactions, NDArray[np.int64]]:
        """As in `Home`."""
        setup = self.setup
        joins = is_new(self.site, setup.run_key)
        secret = f"{derive(self.secret, 'name of the secret'):016x}"
        told = Told(setup.run_key, setup.catalogue, setup.n_items, setup.to_json(), secret)
        interactions = prepared_data(self.site, told, lambda: item_list(frozen(), setup), self.losses)
        if joins:
            forget_old_runs(self.state_dir, setup.run_key, self.losses)
        return interactions, np.arange(interactions.users)


def home_of(place: Place | Site | KeptRun, setup: Setup, losses: Losses) -> Home:
    """Where the users of a node come from in a run. A site never opens a folder that a server names.

    Raises ConfigError if a node of this kind has no place in such a run, NotSharedError if the folders of a simulation
    are not those here.
    """
    simulation = setup.simulation
    if isinstance(place, KeptRun):
        return KeptHome(place, setup)
    if isinstance(place, Site):
        if simulation is not None:
            raise ConfigError(
                ["this node has users of its own, and the run is a simulation: run it with runtime=deployment"]
            )
        require_site(place, setup.run_key)
        return SiteHome(place, setup, losses)
    if simulation is None:
        raise ConfigError(
            ["the server's run is a deployment, and this is a node of a simulation with no users of its own"]
        )
    require_shared(simulation)
    return SimulatedHome(place, setup, simulation)


def item_list(frozen: FrozenStore, setup: Setup) -> ItemList:
    """The catalogue's ids and titles as the server sent them. Raises MissingFrozenError if it did not yet."""
    packed = frozen.get(setup.catalogue)
    if packed is None:
        raise MissingFrozenError(setup.catalogue)
    return unpack_item_list(packed, setup.n_items)
