"""The benchmark of users' texts ranks as the framework does, and its map learns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks import user_texts  # noqa: E402
from commands.baseline.world import World  # noqa: E402
from fedrec.config.compose import compose  # noqa: E402
from fedrec.config.paths import settle  # noqa: E402
from fedrec.language.models import register  # noqa: E402
from fedrec.testing.language import small_run, tiny  # noqa: E402
from server_app.watching import Silent  # noqa: E402


def test_the_page_has_the_tables_of_what_was_measured() -> None:
    assert user_texts.main(["page", "--check"]) == 0


def test_untrained_texts_are_ranked_as_a_run_ranks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(user_texts, "STEPS", 2)
    model = tiny("bert", tmp_path / "model", 8).folder
    given = small_run(
        register(model), "embedding=fixed", "base_table.dim=8", "backbone.scale=1.0", "dataset.n_items=40"
    )
    expected = {}
    for weight, name in ((0, "text"), (1, "text and 1 x decaying mean")):
        config = settle(compose([*given, f"backbone.mean={weight}"], base=None), tmp_path)
        world = World.read(config, config.cache_dir, Silent())
        start = world.start(None)
        for of in ("validation", "test"):
            sums = world.sums(start, {}, world.users.evaluated(of), of, 0)
            expected[name, of] = world.means(sums, of)["ndcg@10"]
    found = user_texts.measure(world, model, tmp_path / "vectors.pt")
    again = user_texts.measure(world, model, tmp_path / "vectors.pt")
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(found)), "from the vectors that were kept"
    assert {key: found["untrained"][key[0]][key[1]] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert len(set(expected.values())) > 1


def test_the_map_learns_what_the_targets_are() -> None:
    """Each user's next item is the one at right angles to its text: what no untrained text can tell."""
    rng = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(50, 8, generator=rng), dim=1)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=rng))[0]
    texts = normalize(vectors @ turned + 0.1 * torch.randn(50, 8, generator=rng), dim=1)
    known = [np.array([], dtype=np.int64)] * 50
    told = user_texts.Told(texts, torch.zeros(50, 8), known, torch.arange(50))
    before = user_texts.ndcg(texts, told, vectors, np.arange(50))
    moved = user_texts.trained_map(told, 8.0, 0.0, vectors, seed=0)
    assert user_texts.ndcg(moved(texts), told, vectors, np.arange(50)) > before + 0.1


def test_items_that_are_alike_stand_in_any_order() -> None:
    """Of two items with one vector the target is first or second; what is known, or nobody may be shown, is neither."""
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    told = user_texts.Told(vectors[:1], torch.zeros(1, 2), [np.array([3])], torch.tensor([0]))
    found = user_texts.ndcg(told.texts, told, vectors, np.array([0, 1, 2, 3]))
    assert found == pytest.approx((1 + 1 / np.log2(3)) / 2)
