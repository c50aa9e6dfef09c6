"""The configuration in the folder of a run that older code made: read where it says the same, refused where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedrec.config.compose import compose
from fedrec.config.describe import from_dict, to_dict
from fedrec.config.schema import RunConfig
from fedrec.core.errors import ConfigError

OFF = {"expand_every": 0, "expand_items": 50, "expand_sharers": 5, "expand_clip": 0.1, "expand_epsilon": 4.0}


def made(tmp_path: Path, *overrides: str) -> tuple[RunConfig, dict[str, Any]]:
    config = compose(["run_id=r", f"runs_dir={tmp_path}", f"cache_dir={tmp_path}", *overrides], base=None)
    return config, to_dict(config)


def test_keys_of_the_federation_that_were_the_strategys(tmp_path: Path) -> None:
    config, values = made(tmp_path, "federation.fraction=0.25", "federation.min_nodes=3")
    values["strategy"] |= values.pop("federation")
    assert from_dict(values) == config


@pytest.mark.parametrize("uplink", ["dense", "sparse"])
def test_an_uplink_that_was_a_key_of_the_federation(tmp_path: Path, uplink: str) -> None:
    config, values = made(tmp_path, f"uplink={uplink}")
    values["federation"]["uplink"] = values.pop("uplink")["name"]
    assert from_dict(values) == config


def test_a_graph_expansion_that_was_off(tmp_path: Path) -> None:
    config, values = made(tmp_path, "backbone=fedpergnn")
    values["backbone"] |= OFF
    assert from_dict(values) == config


def test_a_graph_expansion_that_was_on(tmp_path: Path) -> None:
    _, values = made(tmp_path, "backbone=fedpergnn", "backbone.layers=2")
    values["backbone"] |= {**OFF, "expand_every": 10}
    with pytest.raises(ConfigError, match=r"backbone\.expand_every=10: fedpergnn has no graph expansion any more"):
        from_dict(values)


def test_an_uplink_is_typed_as_the_group_that_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"federation\.uplink=sparse: .* uplink is a group of its own, give uplink="):
        made(tmp_path, "federation.uplink=sparse")


def test_it_cannot_be_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.expand_every=10: there is no key backbone\.expand_every"):
        made(tmp_path, "backbone=fedpergnn", "backbone.expand_every=10")
