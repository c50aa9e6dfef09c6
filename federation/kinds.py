"""Which training and which ranking a run has."""

from __future__ import annotations

from federation.ranking import Ranking
from federation.secure.training import MaskedTraining
from federation.split.ranking import SplitRanking
from federation.split.training import SplitTraining
from federation.training import Training
from fedrec.wire.protocol import Setup


def is_split(setup: Setup) -> bool:
    """Whether the middle of the model is the server's."""
    return setup.backbone_of_run.split is not None


def training_of(setup: Setup) -> type[Training]:
    """The training of a round."""
    if setup.aggregation_of_run.masked:
        return MaskedTraining
    return SplitTraining if is_split(setup) else Training


def ranking_of(setup: Setup) -> type[Ranking]:
    """The ranking after one."""
    return SplitRanking if is_split(setup) else Ranking
