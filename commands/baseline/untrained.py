"""Baselines that train nothing: a random order, popularity, and the similarity of item texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from commands.baseline.world import World
from fedrec.core.errors import FedrecError
from fedrec.data.split import HeldOut
from fedrec.evaluation.compared_by import curve_metric
from peft_embeddings.base_table import text_vectors
from server_app.baselines import simulated_baselines
from server_app.setup import text_encoder
from server_app.watching import Progress, Watcher

MEMBERS: Mapping[str, Sequence[str]] = {
    "random": ["random"],
    "popularity": ["popularity"],
    "content": ["content_mean", "content_last"],
}


class Chosen(NamedTuple):
    """The member of a kind that validates best, and the metrics of all baselines, by split and member."""

    member: str
    metrics: Mapping[HeldOut, Mapping[str, dict[str, float]]]


def untrained(world: World, kind: str, cache_dir: Path, watcher: Watcher) -> Chosen:
    """Rank by baselines alone. Raises FedrecError if `kind` needs texts, and the catalogue's are not read."""
    vectors = None
    if world.config.base_table.start == "text":
        encoder = text_encoder(world.config)
        vectors = text_vectors(world.dataset.catalogue, encoder, cache_dir, Progress(watcher))
    elif kind == "content":
        raise FedrecError("base_table.start=random reads no item texts, and `content` ranks by them: leave it out")
    splits: tuple[HeldOut, HeldOut] = ("validation", "test")
    metrics = {split: simulated_baselines(world.setup, world.dataset, vectors, split).means for split in splits}
    for split, found in metrics.items():
        users = len(world.users.evaluated(split))
        for values in found.values():
            values |= {"users": users, "cold_users": 0, "diverged_users": 0}
    validation = metrics["validation"]
    member = max(MEMBERS[kind], key=lambda name: validation[name][curve_metric(validation[name])])
    return Chosen(member, metrics)
