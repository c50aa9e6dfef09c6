"""Which code a client runs: a digest that the server compares, so that both sides speak of the same thing.

It covers what a client can import and nothing else: a changed comment in a file of the server's must not lock out every
deployed site. A test compares the list below with the imports as they are.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

CLIENT_PACKAGES = ("fedrec", "peft_embeddings", "exchanges", "client_app")
"""The packages that a client imports from."""

SERVER_ONLY = frozenset(
    {
        "client_app/answers/recommending.py",
        "client_app/homes/erasure.py",
        "fedrec/config/check.py",
        "fedrec/config/compose.py",
        "fedrec/config/describe.py",
        "fedrec/config/resume.py",
        "fedrec/config/start.py",
        "fedrec/data/archive.py",
        "fedrec/data/download.py",
        "fedrec/data/planted.py",
        "fedrec/data/report.py",
        "fedrec/data/tastes.py",
        "fedrec/datasets/amazon.py",
        "fedrec/datasets/amazon_2023.py",
        "fedrec/datasets/ml_100k.py",
        "fedrec/datasets/ml_1m.py",
        "fedrec/datasets/movielens.py",
        "fedrec/datasets/shop_words.py",
        "fedrec/datasets/synthetic.py",
        "fedrec/datasets/table.py",
        "fedrec/evaluation/baselines.py",
        "fedrec/evaluation/beyond_accuracy.py",
        "fedrec/evaluation/curves.py",
        "fedrec/evaluation/over_groups.py",
        "fedrec/language/gguf.py",
        "fedrec/testing/backbone.py",
        "fedrec/testing/codec.py",
        "fedrec/testing/downlink.py",
        "fedrec/testing/embedding.py",
        "fedrec/testing/language.py",
        "fedrec/testing/optim.py",
        "fedrec/testing/own_loss.py",
        "fedrec/testing/privacy.py",
        "fedrec/testing/uplink.py",
        "peft_embeddings/base_table.py",
        "peft_embeddings/encoders/language_model.py",
        "peft_embeddings/encoders/sentence_transformer.py",
        "peft_embeddings/encoders/tfidf.py",
        "peft_embeddings/new_items.py",
        "peft_embeddings/reductions/none.py",
        "peft_embeddings/text_map.py",
    }
)
"""Files of these packages that no client imports."""

_ROOT = Path(__file__).resolve().parents[2]


@lru_cache
def code_digest(root: Path = _ROOT) -> str:
    """16 hexadecimal digits that name the code a client runs; the server refuses a node that runs other code.

    A simulation worker may import a package of the same name from its working directory; this is how that is noticed.

    Args:
        root: The folder that holds the packages.
    """
    digest = hashlib.blake2b(digest_size=8)
    for package in CLIENT_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name not in SERVER_ONLY:
                digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
