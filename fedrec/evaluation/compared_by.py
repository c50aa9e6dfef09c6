"""The one metric by which rounds and models are compared. Light: a command that only reads files asks for it."""

from __future__ import annotations

from collections.abc import Iterable


def curve_metric(names: Iterable[str]) -> str:
    """The metric by which rounds and models are compared: NDCG@10 in full ranking, or NDCG at the largest cut-off."""
    cut_offs = sorted(int(name.removeprefix("ndcg@")) for name in names if name.startswith("ndcg@"))
    return f"ndcg@{10 if 10 in cut_offs else cut_offs[-1]}"
