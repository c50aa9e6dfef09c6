"""Groups of users with a model each: their states, what crosses, ranking, resuming, recommending; on any layout.

`MixingStrategy` is the probe: three groups whose models are mixed by a fixed matrix after each round. It is all that a
strategy has to say whose groups learn from one another.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray
from safetensors.torch import load_file

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from client_app.answers.handling import require_groups
from client_app.stores.last_model import kept_models
from commands.local_grid import LocalGrid
from commands.recommend import recommend
from exchanges.records import Content, unpack
from federation.base import Given
from federation.directory import Directory
from federation.server_model import ServerState
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.core.errors import ConfigError, FederationError, FedrecError, PacketError
from fedrec.core.registry import groupings, strategies
from fedrec.groupings.base import Grouping, Users
from fedrec.groupings.key import GroupsByKey, KeyConfig
from server_app.run import run
from strategies.fedpeft import FedPeftStrategy

Federate = Callable[..., Any]

THREE = ("grouping=key", "grouping.groups=3")
MATRIX = {"0": (0.8, 0.1, 0.1), "1": (0.0, 1.0, 0.0), "2": (0.25, 0.25, 0.5)}


class MixingStrategy(FedPeftStrategy):
    """Each group goes on with a fixed mixture of all groups' models."""

    def next(self, states: Mapping[str, ServerState], given: Mapping[str, Given]) -> Mapping[str, ServerState]:
        stepped = super().next(states, given)
        return {
            group: dataclasses.replace(
                state,
                trainable={
                    name: sum(
                        (
                            share * other.trainable[name]
                            for share, other in zip(MATRIX[group], stepped.values(), strict=True)
                        ),
                        torch.zeros_like(tensor),
                    )
                    for name, tensor in state.trainable.items()
                },
            )
            for group, state in stepped.items()
        }


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe in the place of `fedpeft`."""
    strategies.get("fedpeft")
    monkeypatch.setitem(strategies._classes, "fedpeft", MixingStrategy)


def of_group(tensors: Mapping[str, torch.Tensor], group: str) -> dict[str, torch.Tensor]:
    """What of a checkpoint is the trained part of a group's model."""
    start = f"trainable@{group}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def keys_of(outcome: Any) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys and groups as the nodes told them."""
    told = [unpack(message.content).arrays for message in outcome.grid.received]
    told = [arrays for arrays in told if "keys" in arrays]
    return np.concatenate([arrays["keys"] for arrays in told]), np.concatenate([arrays["groups"] for arrays in told])


def test_three_groups_mixed_by_a_matrix_are_the_same_on_any_layout(federate: Federate, mixed: None) -> None:
    one = federate(*THREE, nodes=1)
    final = one.checkpoint()
    models = [of_group(final, group) for group in MATRIX]
    assert all(model.keys() == {"embedding.A", "embedding.B"} for model in models)
    assert not torch.equal(models[0]["embedding.A"], models[1]["embedding.A"])
    for nodes in (2, 7):
        many = federate(*THREE, nodes=nodes)
        many.must_equal(one)
        for here, there in zip(many.metrics, one.metrics, strict=True):
            assert here.get("groups", {}).keys() == there.get("groups", {}).keys()
            for group, ranked in there.get("groups", {}).items():
                assert here["groups"][group]["validation"] == pytest.approx(ranked["validation"], abs=1e-6)


def test_both_engines_agree_on_every_group(federate: Federate, mixed: None) -> None:
    fast, slow = federate(*THREE, "engine=cohort"), federate(*THREE, "engine=oracle")
    for name, tensor in slow.checkpoint().items():
        torch.testing.assert_close(fast.checkpoint()[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_a_device_moves_what_it_would_without_groups_and_tells_its_group(federate: Federate) -> None:
    plain, grouped = federate(nodes=7), federate(*THREE, nodes=7)
    keys, groups = keys_of(grouped)
    by_key = GroupsByKey(KeyConfig("key", 3), seed=0)
    expected = by_key.assign(Users(keys, np.zeros(len(keys) + 1, np.int64), np.zeros(0, np.int64)))
    assert groups.tolist() == expected.tolist()
    assert set(groups.tolist()) == {0, 1, 2}
    told = len('{"groups":3,"name":"key"}') - len('{"name":"one"}') + 2
    for here, there in zip(grouped.metrics, plain.metrics, strict=True):
        assert here["bytes"] == there["bytes"]
        mine, theirs = here["bytes_per_user"], there["bytes_per_user"]
        assert (mine["up"], mine["down"]) == (theirs["up"], theirs["down"])
        assert mine["one_time"] == pytest.approx(theirs["one_time"] + told)
        assert mine["evaluation"] == theirs["evaluation"]


def test_groups_that_do_not_mix_learn_from_their_own_users_alone(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all users in the second of two groups its model is that of a run without groups, and the other's stays."""

    class AllInTheSecond(GroupsByKey):
        def assign(self, users: Users) -> NDArray[np.int64]:
            return np.ones(len(users.keys), dtype=np.int64)

    plain = federate("strategy=full")
    groupings.get("key")
    monkeypatch.setitem(groupings._classes, "key", AllInTheSecond)
    outcome = federate("strategy=full", "grouping=key", "grouping.groups=2")
    first, second = (of_group(outcome.checkpoint(), group) for group in ("0", "1"))
    table = plain.checkpoint()["trainable.embedding.items"]
    assert torch.equal(second["embedding.items"], table)
    assert not torch.equal(first["embedding.items"], table)
    start = federate("strategy=full", "grouping=key", "grouping.groups=2", "strategy.rounds=1").checkpoint()
    assert torch.equal(first["embedding.items"], of_group(start, "0")["embedding.items"]), "nobody has trained it"
    assert outcome.summary["test"] == plain.summary["test"]
    assert outcome.summary["groups"] == {
        "1": {"test": plain.summary["test"], "validation": plain.summary["validation"]}
    }


def test_the_metrics_of_all_are_the_mean_over_the_groups_users(federate: Federate, mixed: None) -> None:
    outcome = federate(*THREE, nodes=3)
    for ranked in (outcome.summary, *[line for line in outcome.metrics if "validation" in line]):
        split = "test" if "test" in ranked else "validation"
        parts = [group[split] for group in ranked["groups"].values()]
        users = sum(part["users"] for part in parts)
        assert users == ranked[split]["users"] == 60
        mean = sum(part["users"] * part["ndcg@10"] for part in parts) / users
        assert mean == pytest.approx(ranked[split]["ndcg@10"])


@pytest.mark.parametrize("more", [(), ("strategy.merge_every=1",)])
def test_a_run_with_groups_that_was_killed_goes_on_to_the_same_end(
    tmp_path: Path, mixed: None, more: tuple[str, ...]
) -> None:
    texts = [
        *("dataset.n_users=40", "dataset.n_items=60", "base_table.dim=8", "embedding.rank=2", *THREE, *more),
        *("strategy.rounds=6", "strategy.warmup_rounds=2", "federation.fraction=0.4", "evaluation.every=2"),
        *("checkpoint_every=2", "run_id=r", f"cache_dir={tmp_path}/cache"),
    ]

    def killed_in(round: int) -> Callable[[Message, Context], Message]:
        def client(message: Message, context: Context) -> Message:
            if unpack(message.content).fields.get("round") == round:
                raise KeyboardInterrupt
            return client_app(message, context)

        return client

    def carried(place: Path, client: Any, *overrides: str) -> dict[str, Any]:
        where = [*overrides, f"runs_dir={place}"]
        return run(settle(compose(where, base=None), None), where, LocalGrid(client, 3))

    whole = carried(tmp_path / "whole", client_app, *texts)
    with pytest.raises(KeyboardInterrupt):
        carried(tmp_path / "part", killed_in(5), *texts)
    again = carried(tmp_path / "part", client_app, "resume=r")
    assert (again["test"], again["groups"]) == (whole["test"], whole["groups"])
    name = "r/checkpoints/round-000006.safetensors"
    expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "part" / name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    lines = [(tmp_path / part / "r/metrics.jsonl").read_text().splitlines() for part in ("whole", "part")]
    for one, other in zip(*lines, strict=True):
        assert json.loads(one)["bytes_per_user"] == json.loads(other)["bytes_per_user"]


def test_everybody_is_recommended_to_by_the_model_of_its_group(federate: Federate) -> None:
    outcome = federate(*THREE, nodes=1)
    found = [recommend(str(outcome.folder), None, f"u{user:02d}", None, 60) for user in range(12)]
    assert {one["group"] for one in found} == {"0", "1", "2"}
    new = recommend(str(outcome.folder), None, None, "i001,i002,i003", 5)
    assert new["group"] in {"0", "1", "2"}
    assert not new["trained"]
    # Another model in a group's place changes what that group's users get, and nobody else's.
    path = outcome.folder / "checkpoints" / "round-000005"
    _swap_signs(path, "1")
    for before in found:
        after = recommend(str(outcome.folder), None, before["user"], None, 60)
        assert (after["items"] == before["items"]) == (before["group"] != "1")


def _swap_signs(path: Path, group: str) -> None:
    import hashlib

    from safetensors.torch import save_file

    tensors = load_file(path.with_suffix(".safetensors"))
    for name in tensors:
        if name.startswith(f"frozen@{group}."):
            tensors[name] = -tensors[name]
    save_file(tensors, path.with_suffix(".safetensors"))
    facts = json.loads(path.with_suffix(".json").read_text())
    facts["digest"] = hashlib.blake2b(path.with_suffix(".safetensors").read_bytes(), digest_size=16).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(facts) + "\n")


def test_groups_that_no_run_has_are_refused_and_counted(federate: Federate) -> None:
    def lying(message: Message, context: Context) -> Message:
        answer = client_app(message, context)
        if context.node_config["partition-id"] == 1 and message.metadata.message_type == "query.enroll":
            record = answer.content["arrays"]
            groups = record["groups"].numpy().copy()  # type: ignore[union-attr, index]
            groups[0] = 3
            record["groups"] = type(record["groups"])(groups)  # type: ignore[index]
        return answer

    outcome = federate(*THREE, nodes=3, client=lying)
    assert outcome.summary["test"]["users"] == 40
    assert all(line["dropped_replies"]["malformed"] for line in outcome.metrics)


def test_a_message_with_a_model_for_a_group_that_the_run_does_not_have_is_refused() -> None:
    require_groups(Content({"model@0": np.zeros(1)}, {"frozen@1": ""}), ("0", "1"))
    for name in ("model@2", "model", "model@"):
        with pytest.raises(PacketError, match="the run has no such group"):
            require_groups(Content({name: np.zeros(1)}, {}), ("0", "1"))
    with pytest.raises(PacketError, match="the run has no such group"):
        require_groups(Content({}, {"versions@north": ""}), ("",))


def test_a_user_stays_in_its_group_for_the_whole_run() -> None:
    directory, keys = Directory(), np.array([5, 6], dtype=np.uint64)
    directory.join(1, keys, np.array([0, 1]), "phone")
    assert (directory.groups.tolist(), directory.grade(1)) == ([0, 1], "phone")
    with pytest.raises(FederationError, match="names other groups for 1 of its users"):
        directory.join(2, keys[:1], np.array([1]))
    assert directory.nodes == [1], "nothing has changed"
    assert directory.join(2, keys, np.array([0, 1])) == [1]
    assert directory.grade(1) == ""


# Sites that name their group --------------------------------------------------------------------------------------


@pytest.fixture
def sites(tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},Item {item}\n" for item in range(30)))
    rng = np.random.default_rng(0)
    for site in range(3):
        lines = [
            f"u{site}-{user},i{item},{time}" for user in range(8) for time, item in enumerate(rng.permutation(30)[:6])
        ]
        (tmp_path / f"site{site}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    return [
        {
            "interactions": str(tmp_path / f"site{site}.csv"),
            "state-dir": str(tmp_path / f"state{site}"),
            "group": ("north", "south", "north")[site],
            "grade": ("phone", "", "")[site],
        }
        for site in range(3)
    ]


def deploy(folder: Path, sites: list[dict[str, Any]], *more: str) -> dict[str, Any]:
    texts = [
        *("runtime=deployment", "dataset=table", f"dataset.item_table={folder}/items.csv", "base_table.start=random"),
        *("base_table.dim=4", "embedding.rank=2", "strategy.rounds=4", "strategy.warmup_rounds=2", "run_id=r"),
        *("grouping=site", "grouping.groups=[north,south]", "federation.fraction=1.0"),
        *(f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", *more),
    ]
    app_module._node.cache_clear()
    return run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, sites))


def test_sites_keep_and_recommend_from_the_model_of_the_group_that_they_name(
    tmp_path: Path, sites: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    grades: list[str] = []
    join = Directory.join

    def noting(self: Directory, node: int, *told: Any) -> list[int]:
        replaced = join(self, node, *told)
        grades.append(self.grade(node))
        return replaced

    monkeypatch.setattr(Directory, "join", noting)
    summary = deploy(tmp_path, sites)
    assert sorted(grades) == ["", "", "phone"], "what each site says of its devices"
    assert {group: found["test"]["users"] for group, found in summary["groups"].items()} == {"north": 16, "south": 8}
    for site, group in enumerate(("north", "south", "north")):
        state = tmp_path / f"state{site}"
        (path,) = kept_models(state)
        assert path.name.endswith(f".{group}.model")
        assert recommend(None, str(state), f"u{site}-1", None, 3)["group"] == group
        assert recommend(None, str(state), None, "i1,i2", 3)["group"] == group


def test_a_site_that_names_no_group_is_refused_in_words(
    tmp_path: Path, sites: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    del sites[0]["group"]
    sites[1]["group"] = "suoth"
    with caplog.at_level(logging.WARNING):
        summary = deploy(tmp_path, sites)
    assert summary["test"]["users"] == 8
    assert "this node's configuration names no group, and the run has the groups north, south" in caplog.text
    assert "did you mean south" in caplog.text


def test_what_cannot_be_grouped_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="simulated nodes have no site that could name its group"):
        compose(["grouping=site", "grouping.groups=[a,b]"], base=None)
    with pytest.raises(ConfigError, match="a group is named twice"):
        compose(["grouping=site", "grouping.groups=[a,a]", "runtime=deployment"], base=None)
    with pytest.raises(ConfigError, match=r"grouping\.groups"):
        compose(["grouping=site", "grouping.groups=[../x,b]", "runtime=deployment"], base=None)
    with pytest.raises(ConfigError, match="says nothing of what a group tells"):
        compose(["experiment=central_gaussian", "grouping=key"], base=None)


@pytest.mark.parametrize("name", groupings.names())
def test_a_grouping_depends_on_the_user_and_not_on_who_is_beside_it(name: str) -> None:
    values = {"key": {"groups": 3}, "site": {"groups": ("a", "b")}, "centroids": {"groups": 4}}.get(name, {})
    cls = groupings.get(name)
    made: Grouping = cls(cls.config_class(name=name, **values), 7)
    keys = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 1], dtype=np.uint8)
    users = Users(keys, np.arange(51), np.arange(50) % 9, "b", labels)
    assigned = made.assign(users)
    assert assigned.shape == (50,)
    assert ((assigned >= 0) & (assigned < len(made.names))).all()
    order = np.random.default_rng(1).permutation(50)
    moved = made.assign(Users(keys[order], users.offsets, users.items[order], "b", labels))
    assert (moved == assigned[order]).all()
    alone = made.assign(Users(keys[:1], np.array([0, 1]), users.items[:1], "b", labels))
    assert alone[0] == assigned[0]
    served = made.nearest(users, [1])
    assert served.dtype == np.int64
    assert served.tolist() == [1] * 50


def test_an_unknown_group_of_a_site_names_the_nearest() -> None:
    cls = groupings.get("site")
    made = cls(cls.config_class(name="site", groups=("north", "south")), 0)
    with pytest.raises(FedrecError, match="did you mean north"):
        made.assign(Users(np.zeros(1, np.uint64), np.zeros(2, np.int64), np.zeros(0, np.int64), "nroth"))
