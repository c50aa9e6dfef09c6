"""The MovieLens readers on folders and archives, sound and damaged, and their download from a local server."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedrec.core.errors import DataError
from fedrec.data.prepare import load

RATINGS = "1::10::5::978300760\n1::20::3::978300700\n2::10::4::978300000\n2::30::1::978300001\n"
MOVIES = "10::Café Noir (1995)::Comedy|Drama\n20::Two: Part :: Less (1996)::Horror\n30::Três (1997)::Children's\n"
SOUND = {"ml-1m/README": "hello", "ml-1m/ratings.dat": RATINGS, "ml-1m/movies.dat": MOVIES.replace(" :: ", " ")}


def archive(path: Path, members: dict[str, str] = SOUND) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in members.items():
            made.writestr(name, text.encode("latin-1"))
    return path.read_bytes()


def unpack(folder: Path, members: dict[str, str] = SOUND) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in members.items():
        (folder / Path(name).name).write_bytes(text.encode("latin-1"))


@pytest.mark.parametrize("form", ["folder", "folder inside", "folder with zip", "zip"])
def test_ml_1m_is_read_wherever_it_lies(form: str, tmp_path: Path, config: Any) -> None:
    root = tmp_path / "here"
    root.mkdir()
    if form == "folder":
        unpack(root)
    elif form == "folder inside":
        unpack(root / "ml-1m")
    else:
        archive(root / "ml-1m.zip")
        root = root / "ml-1m.zip" if form == "zip" else root
    dataset = load(config("ml_1m", root=root, url="http://127.0.0.1:9/none"))
    assert dataset.catalogue.item_ids == ("10", "20", "30")
    assert dataset.catalogue.titles[0] == "Café Noir (1995)"
    assert dataset.catalogue.sentences[0] == "Café Noir (1995). Comedy, Drama."
    assert dataset.interactions.history(0).tolist() == [1, 0]
    assert dataset.interactions.history(1).tolist() == [0, 2]


def test_ml_100k_genres_come_from_the_flags(tmp_path: Path, config: Any) -> None:
    flags = ["0"] * 19
    flags[5] = flags[8] = "1"
    line = "|".join(["{}", "Ça (1995)", "01-Jan-1995", "", "http://x", *flags])
    (tmp_path / "u.item").write_bytes(f"{line.format(1)}\n{line.format(2)}\n".encode("latin-1"))
    (tmp_path / "u.data").write_text("7\t2\t3\t881250949\n7\t1\t3\t881250948\n")
    dataset = load(config("ml_100k", root=tmp_path))
    assert dataset.catalogue.sentences == ("Ça (1995). Comedy, Drama.",) * 2
    assert dataset.interactions.items.tolist() == [0, 1]


def test_a_malformed_line_is_named_or_counted(tmp_path: Path, config: Any) -> None:
    broken = RATINGS.replace("2::10::4::978300000", "2::10::4") + "\n3::10::x::1\n"
    unpack(tmp_path, SOUND | {"ml-1m/ratings.dat": broken, "ml-1m/movies.dat": MOVIES})
    expected = r"ratings.dat, line 3: cannot read '2::10::4'; expected 4 fields separated by '::'"
    with pytest.raises(DataError, match=expected):
        load(config("ml_1m", root=tmp_path))
    dataset = load(config("ml_1m", root=tmp_path, malformed="skip"))
    # Line 3 is too short, line 6 has no number for a rating; the title with '::' is in the item list.
    assert dataset.report.counts["malformed"] == 2
    assert dataset.report.counts["malformed_item"] == 1
    assert dataset.report.counts["unknown_item"] == 1


def test_half_a_folder_is_not_filled_from_the_network(tmp_path: Path, config: Any) -> None:
    (tmp_path / "ratings.dat").write_text(RATINGS)
    with pytest.raises(DataError, match=r"has ratings.dat but lacks movies.dat"):
        load(config("ml_1m", root=tmp_path))


def test_a_relative_root_is_refused(config: Any) -> None:
    with pytest.raises(DataError, match=r"dataset.root=ml is a relative path, write dataset.root=/.*/ml"):
        load(config("ml_1m", root="ml"))


@pytest.mark.parametrize("name", ["../ratings.dat", "/etc/ratings.dat", "ml-1m/../../ratings.dat", "..\\ratings.dat"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path, config: Any) -> None:
    root = tmp_path / "inner" / "root"
    root.mkdir(parents=True)
    archive(root / "ml-1m.zip", {name: RATINGS, "ml-1m/movies.dat": MOVIES})
    with pytest.raises(DataError, match="leads out of its folder"):
        load(config("ml_1m", root=root))
    assert [path.name for path in tmp_path.rglob("*.dat")] == []


def test_a_damaged_archive_is_told(tmp_path: Path, config: Any) -> None:
    sound = archive(tmp_path / "ml-1m.zip")
    for damaged in (b"", b"not a zip", sound[: len(sound) // 2], sound.replace(sound[60:64], b"\0\0\0\0")):
        (tmp_path / "ml-1m.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=r"ml-1m.zip is not a sound zip archive .* delete it"):
            load(config("ml_1m", root=tmp_path))


def test_another_archive_is_told(tmp_path: Path, config: Any) -> None:
    archive(tmp_path / "ml-1m.zip", {"ml-1m/ratings.dat": RATINGS})
    with pytest.raises(DataError, match=r"0 members named movies.dat, expected 1: it is another archive"):
        load(config("ml_1m", root=tmp_path))


class Server(HTTPServer):
    """Serves one body; `cut` bytes of it are announced and not sent."""

    body = b""
    cut = 0
    status = 200
    announced = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        if self.server.announced:
            self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: len(self.server.body) - self.server.cut])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.body = archive(tmp_path / "served.zip")
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def served(server: Server, config: Any, root: Path, **changes: Any) -> Any:
    values = {
        "url": f"http://127.0.0.1:{server.server_port}/ml-1m.zip",
        "md5": hashlib.md5(server.body).hexdigest(),
        "timeout": 5.0,
    }
    return config("ml_1m", root=root, **(values | changes))


@pytest.mark.parametrize("announced", [True, False])
def test_it_is_fetched_once_and_kept(announced: bool, server: Server, tmp_path: Path, config: Any) -> None:
    server.announced = announced
    root, seen = tmp_path / "new" / "folder", []
    chosen = served(server, config, root)
    dataset = load(chosen, lambda what, done, total: seen.append((what, done, total)))
    assert dataset.interactions.users == 2
    assert [path.name for path in root.iterdir()] == ["ml-1m.zip"]
    size = len(server.body)
    assert seen[-1] == (f"fetching {chosen.url}", size, size if announced else 0)
    server.status = 500
    assert load(chosen).interactions.users == 2


def test_root_may_be_the_zip_that_is_to_be(server: Server, tmp_path: Path, config: Any) -> None:
    load(served(server, config, tmp_path / "mine.zip"))
    assert (tmp_path / "mine.zip").is_file()


def test_without_a_root_it_is_kept_at_home(
    server: Server, tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    chosen = served(server, config, tmp_path)
    load(type(chosen)(**{**vars(chosen), "root": None}))
    assert (tmp_path / "home" / "data" / "ml-1m" / "ml-1m.zip").is_file()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"md5": "0" * 32}, r"has md5 [0-9a-f]{32}, expected 0{32}: it is damaged"),
        ({"cut": 10}, r"\d+ of \d+ bytes came: it was cut short"),
        ({"status": 404}, r"cannot fetch .*: Not Found"),
        ({"url": "file:///etc/passwd"}, r"dataset.url=file:///etc/passwd: expected a URL that starts with https://"),
        ({"url": "http://127.0.0.1:9/ml-1m.zip"}, r"cannot fetch .*refused"),
        ({"url": "http://"}, r"cannot fetch"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_nothing(
    fault: dict[str, Any], expected: str, server: Server, tmp_path: Path, config: Any
) -> None:
    root = tmp_path / "root"
    values = {name: value for name, value in fault.items() if name in ("md5", "url")}
    chosen = served(server, config, root, **values)
    for name in ("cut", "status"):
        setattr(server, name, fault.get(name, getattr(server, name)))
    with pytest.raises(DataError, match=expected) as caught:
        load(chosen)
    if not chosen.url.startswith("file:"):
        assert f"To get it by hand: fetch {chosen.url} and put it at {root / 'ml-1m.zip'}" in str(caught.value)
    assert not root.exists() or list(root.iterdir()) == []


def test_a_server_that_never_stops_is_cut_off(
    server: Server, tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrec.data.download.MAX_BYTES", 100)
    server.announced = False
    with pytest.raises(DataError, match="sends more than 100 bytes"):
        load(served(server, config, tmp_path / "root"))
