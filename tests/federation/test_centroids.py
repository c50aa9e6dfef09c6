"""Groups by the centroids of item texts: the labels of items, what becomes of them on their way, and whose they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.stores import frozen
from client_app.stores.last_model import kept_models
from commands.describe import describe
from commands.local_grid import LocalGrid
from commands.places import RecommendError
from commands.recommend import recommend
from exchanges.records import unpack
from fedrec.config.compose import compose
from fedrec.config.describe import from_dict
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, PacketError, StoreError
from fedrec.core.strict_json import parsed_object
from fedrec.data.prepare import load
from fedrec.groupings.base import Users
from fedrec.groupings.centroids import CentroidsConfig, GroupsByCentroids
from fedrec.wire.item_labels import labels_size, pack_labels, unpack_labels
from server_app.run import run
from server_app.setup import item_labels

Federate = Callable[..., Any]

THREE = ("grouping=centroids", "grouping.groups=3")


def test_a_user_is_of_the_group_that_most_of_its_items_are_of() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2], dtype=np.uint8)
    histories = [[4, 5, 0], [2], [1, 4], [5, 2, 3, 4], []]
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], dtype=np.int64)
    users = Users(np.arange(5, dtype=np.uint64), offsets, items, labels=labels)
    found = GroupsByCentroids(CentroidsConfig("centroids", 3), seed=0).assign(users)
    assert found.tolist() == [2, 1, 0, 1, 0], "of equally many the first, and of none the first"
    among = GroupsByCentroids(CentroidsConfig("centroids", 3), seed=0).nearest(users, [0, 2])
    assert among.tolist() == [2, 0, 0, 2, 0], "of those of which a model is here"


def test_labels_are_those_of_the_texts_that_are_near_each_other() -> None:
    """Four heaps of points that are far apart, in any order of the items, each get a label of their own."""
    rng = torch.Generator().manual_seed(0)
    heap = torch.randint(4, (200,), generator=rng)
    table = 10 * torch.eye(4)[heap] + 0.1 * torch.randn(200, 4, generator=rng)
    config = compose(["grouping=centroids", "grouping.groups=4"], base=None)
    found = item_labels(config, table)
    assert found is not None
    labels = unpack_labels(found, 200, 4)
    assert len({(int(one), int(other)) for one, other in zip(heap, labels, strict=True)}) == 4
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert item_labels(compose(["grouping=key"], base=None), table) is None


def test_the_same_groups_and_models_on_any_layout(federate: Federate) -> None:
    one = federate(*THREE, nodes=1)
    for nodes in (2, 7):
        many = federate(*THREE, nodes=nodes)
        many.must_equal(one)
        assert told(many) == told(one)
    assert len(set(told(one).values())) > 1
    for group in one.summary["groups"]:
        assert one.checkpoint()[f"trainable@{group}.embedding.A"].isfinite().all()


def told(outcome: Any) -> dict[int, int]:
    """The group of each user's key, as the nodes told them."""
    answers = [unpack(message.content).arrays for message in outcome.grid.received]
    return {
        int(key): int(group)
        for arrays in answers
        if "keys" in arrays
        for key, group in zip(arrays["keys"], arrays["groups"], strict=True)
    }


def test_a_device_tells_what_a_slow_count_of_its_training_items_says(federate: Federate) -> None:
    outcome = federate(*THREE, nodes=3)
    _, _, sent = next(outcome.grid.packets(outcome.grid.sent, "frozen."))
    labels = list(sent[-100:])
    config = from_dict(yaml.safe_load((outcome.folder / "config.yaml").read_text()))
    histories = load(config.dataset).interactions  # type: ignore[arg-type]
    expected: Counter[int] = Counter()
    for user in range(histories.users):
        training = histories.items[histories.offsets[user] : histories.offsets[user + 1]][:-2]
        votes = Counter(labels[item] for item in training)
        most = max(votes.values(), default=0)
        expected[min((label for label, count in votes.items() if count == most), default=0)] += 1
    assert Counter(told(outcome).values()) == expected


def test_the_labels_are_charged_to_everybody_once(federate: Federate) -> None:
    by_key, by_text = federate("grouping=key", "grouping.groups=3"), federate(*THREE)
    more = labels_size(100, 3) + len('"item_labels":"",') + 32 + len("centroids") - len("key")
    for here, there in zip(by_text.metrics, by_key.metrics, strict=True):
        assert here["bytes_per_user"]["one_time"] == pytest.approx(there["bytes_per_user"]["one_time"] + more)
    described = describe(compose([*THREE, "strategy=fellrec"], base=None), 100).joining
    assert described["labels of items"] == labels_size(100, 3) == 100 + 36


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (torch.zeros(9, dtype=torch.uint8), "none of one byte for each of 10 items"),
        (torch.zeros(10), "none of one byte"),
        (torch.full((10,), 3, dtype=torch.uint8), "an item has the label 3, and there are 3 labels"),
    ],
)
def test_labels_of_other_items_or_of_no_group_are_refused(labels: torch.Tensor, why: str) -> None:
    with pytest.raises(PacketError, match=why):
        unpack_labels({"labels": labels}, 10, 3)
    assert unpack_labels(pack_labels(torch.arange(10) % 3), 10, 3).tolist() == [0, 1, 2] * 3 + [0]


def test_vectors_that_say_nothing_of_items_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="goes by the texts of items"):
        compose(["grouping=centroids", "base_table.start=random"], base=None)


def test_a_kept_run_recommends_by_its_labels_and_says_that_they_are_gone(federate: Federate) -> None:
    outcome = federate(*THREE, nodes=1)
    groups = {recommend(str(outcome.folder), None, f"u{user:02d}", None, 5)["group"] for user in range(12)}
    assert len(groups) > 1
    setup = parsed_object((outcome.folder / "setup.json").read_text())
    path = outcome.folder / "state" / "frozen" / f"{setup['item_labels']}.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    frozen._load.cache_clear()
    with pytest.raises(StoreError, match="the labels of items, by which users are grouped"):
        recommend(str(outcome.folder), None, "u00", None, 5)


# Sites ------------------------------------------------------------------------------------------------------------

TEXTS = ("an old red hammer of steel", "a cup of green tea leaves", "a long novel about the sea")


@pytest.fixture
def sites(tmp_path: Path) -> list[dict[str, Any]]:
    """Three sites; each user of each has the items of one text."""
    lines = [f"i{item},{TEXTS[item % 3]} no{item % 5}\n" for item in range(30)]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(lines))
    for site in range(3):
        rows = [
            f"u{site}-{user},i{item},{time}"
            for user in range(6)
            for time, item in enumerate(np.random.default_rng(user).permutation(10)[:6] * 3 + user % 3)
        ]
        (tmp_path / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return [
        {"interactions": str(tmp_path / f"site{site}.csv"), "state-dir": str(tmp_path / f"state{site}")}
        for site in range(3)
    ]


def deploy(folder: Path, sites: list[dict[str, Any]], client: Any = client_app) -> dict[str, Any]:
    texts = [
        *("runtime=deployment", "dataset=table", f"dataset.item_table={folder}/items.csv", *THREE, "strategy=fellrec"),
        *("base_table.dim=4", "embedding.rank=2", "strategy.rounds=3", "run_id=r", "federation.fraction=1.0"),
        *(f"runs_dir={folder}/runs", f"cache_dir={folder}/cache"),
    ]
    app_module._node.cache_clear()
    return run(settle(compose(texts, base=None), None), texts, LocalGrid(client, sites))


def test_a_site_places_its_users_and_somebody_new_by_the_labels_that_it_was_sent(
    tmp_path: Path, sites: list[dict[str, Any]]
) -> None:
    summary = deploy(tmp_path, sites)
    assert {ranked["test"]["users"] for ranked in summary["groups"].values()} == {6}, "one of each text at each site"
    state = tmp_path / "state1"
    groups = [recommend(None, str(state), f"u1-{user}", None, 3)["group"] for user in range(6)]
    assert groups[:3] == groups[3:]
    assert sorted(groups[:3]) == ["0", "1", "2"]
    new = recommend(None, str(state), None, "i1,i4,i2", 3)
    assert new["group"] == groups[1], "most of its items are of that text"
    kept, lost = next(name for name in "012" if name != groups[1]), groups[1]
    for path in kept_models(state):
        if not path.name.endswith(f".{kept}.model"):
            path.unlink()
    new = recommend(None, str(state), None, "i1,i4,i2", 3)
    assert (new["group"], new["instead_of"]) == (kept, lost)
    assert recommend(None, str(state), f"u1-{groups.index(kept)}", None, 3, kept)["group"] == kept
    with pytest.raises(RecommendError, match="the run has the groups 0, 1, 2"):
        recommend(None, str(state), "u1-0", None, 3, "north")
    with pytest.raises(RecommendError, match=f"no model of the group {lost} is here, only of {kept}"):
        recommend(None, str(state), "u1-0", None, 3, lost)
    setup = parsed_object((tmp_path / "runs" / "r" / "setup.json").read_text())
    (state / "frozen" / f"{setup['item_labels']}.safetensors").unlink()
    frozen._load.cache_clear()
    app_module._node.cache_clear()
    with pytest.raises(StoreError, match="the labels of items"):
        recommend(None, str(state), None, "i1,i4,i2", 3)


def test_a_site_that_has_lost_the_labels_joins_anew_and_is_sent_them_again(
    tmp_path: Path, sites: list[dict[str, Any]]
) -> None:
    lost: list[Path] = []

    def client(message: Message, context: Context) -> Message:
        state = Path(str(context.node_config["state-dir"]))
        if unpack(message.content).fields.get("round") == 2 and state.name == "state0" and not lost:
            setup = parsed_object(str(context.state["setup"]["json"]))
            lost.append(state / "frozen" / f"{setup['item_labels']}.safetensors")
            lost[0].unlink()
            frozen._load.cache_clear()
            app_module._node.cache_clear()  # every message to a site is a new process
        return client_app(message, context)

    summary = deploy(tmp_path, sites, client)
    assert lost[0].exists()
    assert summary["test"]["users"] == 18
    assert summary["dropped_replies"] == {}
