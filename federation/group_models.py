"""The global models of a run: one for each group of its users, which go through the plan together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from flwr.app import Array
from torch import Tensor

from exchanges.records import Field, grouped
from federation.server_model import ServerModel, ServerState
from federation.versions import Frozen
from fedrec.core.tensors import Spec
from peft_embeddings.model import Model


class GroupModels:
    """The model of every group; with no groups, the one model."""

    def __init__(self, groups: Sequence[str], made: Callable[[], ServerModel]) -> None:
        """All start alike, as `made` makes them."""
        self._models = {group: made() for group in groups}
        self._first = next(iter(self._models.values()))

    def __getitem__(self, group: str) -> ServerModel:
        return self._models[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def items(self) -> Iterator[tuple[str, ServerModel]]:
        """Each group and its model."""
        yield from self._models.items()

    # The same for all groups -----------------------------------------------------------------------------------------

    @property
    def phase(self) -> int:
        """The present phase of the plan."""
        return self._first.state.phase

    @property
    def phase_name(self) -> str:
        """Its name."""
        return self._first.phase_name

    @property
    def eligible(self) -> Array:
        """The public list of items that may be recommended, wrapped."""
        return self._first.eligible

    @property
    def model(self) -> Model:
        """What is trained in it."""
        return self._first.model

    @property
    def trainable(self) -> Spec:
        """Specification of what travels in it."""
        return self._first.model.trainable

    @property
    def trained(self) -> Spec:
        """Specification of what is trained in it, also of what never travels."""
        return self._first.model.trained

    @property
    def merges(self) -> int:
        """Merges into the base table in it so far."""
        return self._first.state.merges.count

    @property
    def counts(self) -> Tensor | None:
        """Users per item [items], of all groups together, as the backbone had them counted."""
        return self._first.counts

    def enters(self, round: int) -> bool:
        """Whether `round` is the first of the phase after the present one."""
        return self._first.enters(round)

    # Step by step ----------------------------------------------------------------------------------------------------

    @property
    def states(self) -> Mapping[str, ServerState]:
        """Where each stands."""
        return {group: model.state for group, model in self._models.items()}

    @states.setter
    def states(self, states: Mapping[str, ServerState]) -> None:
        for group, state in states.items():
            self._models[group].state = state

    @property
    def reports(self) -> dict[str, dict[str, dict[str, float]]]:
        """What the embedding of each phase so far said of its start, by group."""
        return {group: model.reports for group, model in self._models.items()}

    def restore(
        self,
        states: Mapping[str, ServerState],
        counts: Tensor | None,
        reports: Mapping[str, Mapping[str, Mapping[str, float]]],
    ) -> None:
        """Stand where a checkpoint says."""
        for group, model in self._models.items():
            model.restore(states[group], counts, reports[group])

    def advance(self, round: int) -> None:
        """Enter the phase to which `round` belongs, if it is the first of it."""
        for model in self._models.values():
            model.advance(round)

    def merge(self, round: int) -> None:
        """If one is due after `round`, merge each correction into its base table."""
        for model in self._models.values():
            model.merge(round)

    def freeze_counts(self, counts: Tensor) -> None:
        """Users per item [items] have been counted."""
        for model in self._models.values():
            model.freeze_counts(counts)

    # What messages bring ---------------------------------------------------------------------------------------------

    def fields(self, round: int, groups: Sequence[str]) -> dict[str, Field]:
        """What a message of `round` says about the models of these groups, which it carries."""
        return {
            grouped(name, group): value for group in groups for name, value in self._models[group].fields().items()
        } | {"phase": self.phase, "round": round}

    def holdings(self, groups: Sequence[str]) -> dict[str, Frozen]:
        """What everybody of these groups must hold who trains the present models, or is ranked with them."""
        return {group: self._models[group].holdings for group in groups}
