"""What an embedding says of its start when a phase begins: a line in the log, and numbers for the run's summary."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fedrec.core.tensors import Tensors
from peft_embeddings.base import ItemEmbedding

log = logging.getLogger("fedrec")


def report_start(phase: str, embedding: ItemEmbedding, frozen: Tensors) -> dict[str, float]:
    """The embedding's facts about its frozen tensors; logged, if there are any."""
    facts = dict(embedding.report(frozen))
    if facts:
        log.info("%s starts: %s", phase, fact_line(facts))
    return facts


def fact_line(facts: Mapping[str, float]) -> str:
    """Facts on one line."""
    return ", ".join(f"{name}={value:.6g}" for name, value in facts.items())
