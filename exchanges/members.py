"""The exchanges that there are: joining, training, ranking, and counting items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from exchanges import records
from exchanges.declaration import Declaration, Participant
from fedrec.core.tensors import Spec
from fedrec.wire.packet import PacketFormat
from fedrec.wire.protocol import Setup, counts_format

KEY_BYTES = 8


class Enrolment(Declaration):
    """A node joins: the setup of the run down, and the list of items to who lacks it; its users' keys up.

    These are no packets of tensors: JSON that a client checks, and one array.
    """

    kind = records.ENROLL

    def __init__(self, setup: Setup, item_list: int = 0) -> None:
        """Of a run whose clients are told `setup`; `item_list` is the length of the packet of items, or 0 for none."""
        self._setup = len(setup.device_json().encode())
        self._item_list = item_list

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {}

    @override
    def down_bytes(self, to: Participant) -> int:
        return self._setup + self._item_list

    @override
    def up_bytes(self, by: Participant) -> int:
        return KEY_BYTES * by.users


class Training(Declaration):
    """The chosen users train: the model down, the sum of their updates up."""

    kind = records.TRAIN

    def __init__(self, setup: Setup, trainable: Spec) -> None:
        """Of a model with these trainable tensors."""
        self._setup = setup
        self._trainable = trainable

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {records.MODEL: self._setup.model_format(self._trainable)}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {records.UPDATE: self._setup.update_format(self._trainable, by.users)}

    @override
    def range_up(self) -> tuple[int, int]:
        form = self._setup.update_format(self._trainable, 1)
        return form.least(), form.size()


class Ranking(Declaration):
    """All users rank their held-out items: the model down, sums of metrics up, a packet for each split."""

    kind = records.EVALUATE

    def __init__(self, setup: Setup, trainable: Spec, splits: Sequence[str]) -> None:
        """Of a model with these trainable tensors, and of these splits."""
        self._setup = setup
        self._trainable = trainable
        self.splits = tuple(splits)

    @override
    def down(self, to: Participant) -> Mapping[str, PacketFormat]:
        return {records.MODEL: self._setup.model_format(self._trainable)}

    @override
    def up(self, by: Participant) -> Mapping[str, PacketFormat]:
        return {records.METRICS + split: self._setup.metrics_format() for split in self.splits}


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
