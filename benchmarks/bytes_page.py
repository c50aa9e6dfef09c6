"""The tables of docs/bytes.md: what every method in the registry moves, as `fedrec describe` has it.

    python -m benchmarks.bytes_page           write the tables
    python -m benchmarks.bytes_page --check   exit 1 if the page has others

Every embedding, in every variant it offers, with every backbone, under each strategy that takes it; all other values
are the defaults. Nothing is trained; Amazon Industrial is read (from `FEDREC_DATA`) for the number of its items.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast, get_args

from benchmarks import documents
from commands.describe import describe
from fedrec.config.compose import compose
from fedrec.config.describe import complete_members
from fedrec.config.schema import RunConfig
from fedrec.config.validate import field_types
from fedrec.core.errors import ConfigError
from fedrec.core.registry import embeddings, strategies
from fedrec.data.prepare import load
from fedrec.datasets.base import DatasetConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "bytes.md"

_HEAD = (
    "| strategy | embedding | backbone | up, a round | down, a round | once | up, 1,000 rounds | down, 1,000 rounds |\n"
    "|---|---|---|---:|---:|---:|---:|---:|\n"
)


class Method(NamedTuple):
    """One line of a table."""

    strategy: str
    embedding: str
    backbone: str
    config: RunConfig


def methods() -> Iterator[Method]:
    """Everything in the registry that fits together. Raises SystemExit for an embedding that no strategy takes."""
    for embedding in embeddings.names():
        variants = get_args(field_types(embeddings.get(embedding).config_class).get("variant", ()))
        for variant in variants or (None,):
            chosen = [f"embedding={embedding}", *([f"embedding.variant={variant}"] if variant else [])]
            label = f"{embedding} {variant}" if variant else embedding
            found = [
                Method(strategy, label, backbone, config)
                for strategy in strategies.names()
                for backbone in complete_members("backbone")
                if (config := _composed(f"strategy={strategy}", f"backbone={backbone}", *chosen)) is not None
            ]
            if not found:
                raise SystemExit(f"no strategy takes {' '.join(chosen)}")
            yield from found


def _composed(*overrides: str) -> RunConfig | None:
    try:
        return compose(overrides, base=ROOT)
    except ConfigError:
        return None


def industrial_items(data: Path) -> int:
    """Items of Amazon Industrial, as the data set `table` lists them."""
    folder = data / "amazon-industrial"
    places = [f"dataset.interactions={folder}/interactions.csv", f"dataset.item_table={folder}/items.csv"]
    config = compose(["dataset=table", *places], base=None)
    return len(load(cast(DatasetConfig, config.dataset)).catalogue)


def tables(industrial: int) -> str:
    """What stands between the two marks of the page."""
    catalogues = {
        "MovieLens 1M, every film id up to the highest, as the paper counts": 3_952,
        "MovieLens 1M, the rated films": 3_706,
        "Amazon Industrial and Scientific": industrial,
        "A large catalogue": 1_000_000,
    }
    chosen = list(methods())
    text = ""
    for title, items in catalogues.items():
        lines = sorted((_line(method, items) for method in chosen), key=lambda line: (line[0], -line[1]))
        text += f"### {title}: {items:,} items\n\n{_HEAD}{''.join(row for *_, row in lines)}\n"
    return text


def sparse_uplink() -> str:
    """The update packet of each embedding as lists of rows, for a window and negatives that say how many may change."""
    text = (
        "\n| items | codec | embedding | `dense` | `sparse`, at most | `sparse`, nothing changed |\n"
        "|---:|---|---|---:|---:|---:|\n"
    )
    read = ["optim=fast", "optim.window=51", "optim.negatives=500"]
    for items in (3_706, 100_000):
        for codec in ("float32", "int8"):
            for embedding in embeddings.names():
                if embedding == "fixed":  # has no rows that change
                    continue
                strategy = "strategy=full" if embedding == "full" else "strategy=fedpeft"
                chosen = [strategy, f"embedding={embedding}", f"codec={codec}", *read]
                dense, sparse = (
                    describe(compose([*chosen, f"uplink={uplink}"], base=ROOT), items).phases[-1]
                    for uplink in ("dense", "sparse")
                )
                cells = [f"{items:,}", f"`{codec}`", f"`{embedding}`", f"{dense.up:,}", f"{sparse.up:,}"]
                text += f"| {' | '.join([*cells, f'{sparse.least_up:,}'])} |\n"
    return text + "\n"


def coded_uplinks() -> str:
    """The update packet of the whole table in `int8` by each uplink, for catalogues of three sizes."""
    uplinks = {
        "`dense`": ["uplink=dense"],
        "`sparse`": ["uplink=sparse"],
        "`sampled`, 64 rows": ["uplink=sampled", "uplink.rows=64"],
        **{f"`actions`, {k}": ["uplink=actions", f"uplink.actions={k}"] for k in (64, 16, 4, 2)},
    }
    text = f"\n| items | {' | '.join(uplinks)} |\n|---:|{'---:|' * len(uplinks)}\n"
    for items in (3_706, 100_000, 1_000_000):
        chosen = ["strategy=full", "codec=int8", "optim=fast", "optim.window=51", "optim.negatives=500"]
        found = [describe(compose([*chosen, *each], base=ROOT), items).phases[-1].up for each in uplinks.values()]
        text += f"| {items:,} | {' | '.join(f'{up:,}' for up in found)} |\n"
    return text + "\n"


def steps_down() -> str:
    """The packet of a step of the whole table in `int8`, by how many actions it has, for catalogues of three sizes."""
    actions = (64, 16)
    head = " | ".join(("items", "`dense`, each round chosen", *(f"`actions`, {k}, a step" for k in actions)))
    text = f"\n| {head} | beside a step |\n|{'---:|' * (len(actions) + 3)}\n"
    for items in (3_706, 100_000, 1_000_000):
        chosen = ["strategy=full", "codec=int8"]
        dense = describe(compose(chosen, base=ROOT), items).phases[-1]
        steps = [
            describe(compose([*chosen, "downlink=actions", f"downlink.actions={k}"], base=ROOT), items).phases[-1]
            for k in actions
        ]
        cells = [f"{items:,}", f"{dense.down:,}", *(f"{step.merge:,}" for step in steps), f"{steps[0].down:,}"]
        text += f"| {' | '.join(cells)} |\n"
    return text + "\n"


def _line(method: Method, items: int) -> tuple[str, int, str]:
    """Backbone and bytes up, to sort by, and the line itself."""
    found = describe(method.config, items)
    last, long = found.phases[-1], found.per_1000_rounds
    numbers = (last.up, last.down, long.one_time, round(long.up), round(long.down))
    cells = [f"`{method.strategy}`", f"`{method.embedding}`", f"`{method.backbone}`", *(f"{n:,}" for n in numbers)]
    return method.backbone, last.up, f"| {' | '.join(cells)} |\n"


def main(arguments: Sequence[str]) -> int:
    data = Path(os.environ.get("FEDREC_DATA") or ROOT.parent / "shared" / "data").absolute()
    blocks = {"bytes": f"\n{tables(industrial_items(data))}", "sparse": sparse_uplink(), "coded": coded_uplinks()}
    blocks["steps"] = steps_down()
    return documents.write(PAGE, blocks, command="python -m benchmarks.bytes_page", check="--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
