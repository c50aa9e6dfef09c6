"""Whole runs with every compressed embedding: they learn, they freeze, and they move the bytes that they say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from federation.reports import fact_line
from fedrec.config.describe import load_member
from fedrec.core.registry import embeddings
from fedrec.core.tensors import Tensors

Federate = Callable[..., Any]

ITEMS, DIM, ROUNDS, WARMUP = 100, 8, 12, 4
HEADER, MODEL, UPDATE, BASE = 36, 8, 64, 4 * ITEMS * DIM
"""Bytes of a packet's header, of the scalars of a model and of an update, and of the base table."""

LORA = 4 * (ITEMS * 2 + 2 * DIM)
HASHED = 4 * 16 * DIM
SENET = HASHED + 4 * (2 * 32 + 32 * 2)
CODEBOOKS = 4 * 2 * 16 * DIM
FUNCTIONS, CODES = 8 * 2 * 2, ITEMS * 2
HASH_KEYS = ("embedding.buckets=16",)
RQ_KEYS = ("embedding.levels=2", "embedding.codes=16", "embedding.steps=30")

RUNS = {
    "P-LoRA": ("lora", "P", (), LORA, BASE),
    "P-Hash": ("hash", "P", HASH_KEYS, HASHED, BASE + FUNCTIONS),
    "P-Hash-SENet": ("hash_senet", "P", HASH_KEYS, SENET, BASE + FUNCTIONS),
    "P-RQ-VAE": ("rqvae", "P", RQ_KEYS, CODEBOOKS, BASE + CODES),
    "P-RQ-VAE, semantic": ("rqvae", "P", (*RQ_KEYS, "embedding.start=semantic"), CODEBOOKS, BASE + CODES + CODEBOOKS),
    "C-LoRA": ("lora", "C", (), LORA, 0),
    "C-LoRA, semantic": ("lora", "C", ("embedding.start=semantic",), LORA, 0),
    "C-Hash": ("hash", "C", HASH_KEYS, HASHED, FUNCTIONS),
    "C-Hash-SENet": ("hash_senet", "C", HASH_KEYS, SENET, FUNCTIONS),
    "C-RQ-VAE": ("rqvae", "C", RQ_KEYS, CODEBOOKS, CODES),
}
"""Embedding, variant, its keys; bytes of what is trained, and of what is sent once."""


@pytest.mark.parametrize("run", RUNS)
def test_it_learns_what_it_trains_freezes_the_rest_and_moves_what_it_says(
    federate: Federate, caplog: pytest.LogCaptureFixture, run: str
) -> None:
    name, variant, keys, trained, frozen = RUNS[run]
    with caplog.at_level(logging.INFO, logger="fedrec"):
        outcome = federate(
            f"embedding={name}",
            f"embedding.variant={variant}",
            f"strategy.rounds={ROUNDS}",
            f"strategy.warmup_rounds={WARMUP}",
            "federation.fraction=1.0",
            "optim.lr=0.03",
            "evaluation.every=0",
            "checkpoint_every=1",
            "checkpoints_kept=100",
            *keys,
        )
    peft = [line for line in outcome.metrics if line["phase"] == "peft"]
    assert len(peft) == (ROUNDS - WARMUP if variant == "P" else ROUNDS)
    assert ("has no effect" in caplog.text) == (variant == "C")
    assert peft[-1]["loss"] < peft[0]["loss"] - 0.01

    checkpoints = [
        load_file(outcome.folder / f"checkpoints/round-{line['round']:06d}.safetensors") for line in (peft[0], peft[-1])
    ]
    first, last = (_split(tensors) for tensors in checkpoints)
    assert ("frozen.base" in first[1]) == (variant == "P")
    assert all(torch.equal(tensor, last[1][key]) for key, tensor in first[1].items()), "what is frozen has moved"
    assert all(not torch.equal(tensor, last[0][key]) for key, tensor in first[0].items()), "what is trained has not"

    users = peft[0]["cohort"]
    for line in peft:
        assert line["bytes"]["down"] == users * (HEADER + MODEL + trained)
        assert line["bytes"]["up"] == users * (HEADER + UPDATE + trained)
    assert [line["bytes"]["one_time"] for line in peft] == [
        users * (HEADER + frozen) if frozen else 0,
        *[0] * (len(peft) - 1),
    ]


@pytest.mark.parametrize(("name", "keys"), [("hash", HASH_KEYS), ("rqvae", RQ_KEYS)])
def test_what_the_start_was_like_is_in_the_log_and_in_the_summary(
    federate: Federate, name: str, keys: tuple[str, ...]
) -> None:
    outcome = federate(f"embedding={name}", *keys)
    frozen = load_file(outcome.folder / "checkpoints/round-000005.safetensors")
    config = load_member("embedding", name, **{key[10:].split("=")[0]: int(key.split("=")[1]) for key in keys})
    embedding = embeddings.get(name)(config, ITEMS, DIM)
    facts = embedding.report({key.removeprefix("frozen."): tensor for key, tensor in frozen.items()})
    assert outcome.summary["embedding"] == {"peft": facts}
    assert f"INFO peft starts: {fact_line(facts)}\n" in (outcome.folder / "log.txt").read_text()


def test_without_codes_there_is_nothing_to_report(federate: Federate) -> None:
    assert federate().summary["embedding"] == {}


def _split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The trained and the frozen tensors of a checkpoint."""
    trained, frozen = (
        {key: tensor for key, tensor in tensors.items() if key.startswith(kind)} for kind in ("trainable.", "frozen.")
    )
    return trained, frozen
