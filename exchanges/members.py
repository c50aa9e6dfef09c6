"""The exchanges that there are: joining, training, ranking, and counting items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from exchanges import records
from exchanges.declaration import Declaration, Participant
from exchanges.records import grouped
from fedrec.core.tensors import Spec
from fedrec.wire.item_counts import counts_format
from fedrec.wire.item_labels import labels_size
from fedrec.wire.packet import PacketFormat
from fedrec.wire.protocol import Setup

KEY_BYTES, GROUP_BYTES = 8, 2


class Enrolment(Declaration):
    """A node joins: the setup of the run down, and the list of items to who lacks it; its users' keys up.

    Where users are grouped by the labels of items, those go down with the setup. Nothing of it is trained: JSON and
    lists that a client checks, and arrays.
    """

    kind = records.ENROLL

    def __init__(self, setup: Setup, item_list: int = 0) -> None:
        """Of a run whose clients are told `setup`; `item_list` is the length of the packet of items, or 0 for none."""
        self._setup = len(setup.device_json().encode())
        self._lists = item_list + labels_size(setup.n_items, setup.grouping_of_run.labels)
        self._grouped = len(setup.groups) > 1

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {}

    @override
    def down_bytes(self, to: Participant) -> int:
        return self._setup + self._lists

    @override
    def up_bytes(self, by: Participant) -> int:
        return (KEY_BYTES + GROUP_BYTES * self._grouped) * by.users


def models_down(setup: Setup, trainable: Spec, to: Participant) -> dict[str, PacketFormat]:
    """The models of the participant's groups."""
    form = setup.model_format(trainable)
    return {grouped(records.MODEL, setup.groups[group]): form for group in to.by_group}


class Training(Declaration):
    """The chosen users train: their groups' models down, for each group the sum of their updates up."""

    kind = records.TRAIN

    def __init__(self, setup: Setup, trainable: Spec) -> None:
        """Of a model with these trainable tensors."""
        self._setup = setup
        self._trainable = trainable

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return models_down(self._setup, self._trainable, to)

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {
            grouped(records.UPDATE, self._setup.groups[group]): self._setup.update_format(self._trainable, users)
            for group, users in by.by_group.items()
        }

    @override
    def range_up(self) -> tuple[int, int]:
        form = self._setup.update_format(self._trainable, 1)
        return form.least(), form.size()


class Ranking(Declaration):
    """All users rank their held-out items: their groups' models down, for each group and split sums of metrics up."""

    kind = records.EVALUATE

    def __init__(self, setup: Setup, trainable: Spec, splits: Sequence[str]) -> None:
        """Of a model with these trainable tensors, and of these splits."""
        self._setup = setup
        self._trainable = trainable
        self.splits = tuple(splits)

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return models_down(self._setup, self._trainable, to)

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {
            grouped(records.METRICS + split, self._setup.groups[group]): self._setup.metrics_format()
            for group in by.by_group
            for split in self.splits
        }


class Counting(Declaration):
    """Users report their items with noise, once: nothing down, the sum of the reports up."""

    kind = records.COUNT

    def __init__(self, n_items: int) -> None:
        """Of a catalogue of so many items."""
        self._n_items = n_items

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {records.COUNTS: counts_format(self._n_items)}
