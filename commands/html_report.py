"""`fedrec report`: a finished run on one page of HTML that needs nothing else, neither files nor a network.

Every text of the run is escaped: ids and titles, warnings and paths come from data and from other machines. The page
follows the reader's light or dark colours; the curves are drawn by matplotlib in tones that show on both.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup

from commands.changes import shown
from commands.list_figures import FIGURES, KEY, rows_of
from commands.progress import amount, duration, figure
from commands.report import byte_rows, group_rows, protocols
from fedrec.config.compose import compose
from fedrec.config.describe import differences
from fedrec.config.resume import config_in
from fedrec.core.disk import reading, writing
from fedrec.core.errors import FedrecError
from fedrec.core.strict_json import parsed_object
from fedrec.core.whole_files import write_text
from fedrec.data.report import MEANING
from fedrec.evaluation.baselines import NAMES
from fedrec.evaluation.compared_by import curve_metric
from fedrec.evaluation.curves import curve, read_records
from server_app.run_folder import MANIFEST, SUMMARY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "report.html"
"""What the page is called if nobody says: in the run's folder."""

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_LOSS = "training loss"
_LINE, _SECOND, _GREY = "#3b82c4", "#d97706", "#8a8f98"


class Section(NamedTuple):
    """A table of the page.

    Attributes:
        title: Its heading.
        head: Names of the columns.
        rows: Cells.
        note: What is said below it; empty: nothing.
        strong: Whether the last row is the one that counts.
        text: Whether all cells are text, and not only the first ones.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: bool = False
    text: bool = False


def report(folder: Path, out: Path | None) -> Path:
    """Write the page of a finished run; where it is.

    Args:
        folder: The run's.
        out: The file; None: `NAME` in the run's folder.

    Raises FedrecError if the run has not ended, its files are damaged, matplotlib is missing, or the disk refuses.
    """
    with reading(f"{folder} is not the folder of a finished run: {SUMMARY}", "give runs/<id>"):
        summary = parsed_object((folder / SUMMARY).read_text(encoding="utf-8"))
        manifest = parsed_object((folder / MANIFEST).read_text(encoding="utf-8"))
    records = read_records(folder)
    with reading(f"{folder}: what {SUMMARY}, {MANIFEST} or the metrics hold", "restore the run folder from a copy"):
        page = _page(folder, summary, manifest, records)
    path = out or folder / NAME
    with writing(f"the report {path}", "give another file with --out"):
        write_text(path, page)
    return path


def _page(
    folder: Path, summary: Mapping[str, Any], manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str:
    sections = [*_metrics(summary), *_lists(summary), *_groups(summary), *_bytes(summary), *_losses(summary, records)]
    sections += [*_data(manifest), *_changes(folder), _environment(manifest)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=Path(str(summary["run"])).name,
        facts=_facts(summary, manifest),
        notes=[str(summary[name]) for name in ("chosen", "share", "standing") if name in summary],
        warnings=[str(warning) for warning in summary.get("warnings", ())],
        curves=Markup(_curves(records, curve_metric(summary["test"]))),
        sections=sections,
    )


def _facts(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands at the top in large letters."""
    test, moved = summary["test"], summary.get("bytes_per_user")
    found = [("NDCG@10 at test", figure(test.get("ndcg@10"))), ("HR@10", figure(test.get("hr@10")))]
    if best := _best_baseline(summary):
        found.append((f"NDCG@10 of {best[0]}", figure(best[1])))
    found += [("bytes per user", amount(moved["total"]))] if moved else []
    found += [("rounds", f"{summary['rounds']:,}"), ("took", duration(summary["seconds"]))]
    found += [("users ranked", f"{int(test['users']):,}"), ("data", str(manifest.get("data", {}).get("name", "-")))]
    return found


def _best_baseline(summary: Mapping[str, Any]) -> tuple[str, float] | None:
    known = {name: found.get("ndcg@10") for name, found in summary.get("baselines", {}).items()}
    finite = {name: value for name, value in known.items() if value is not None}
    name = max(finite, key=lambda each: finite[each], default=None)
    return None if name is None else (NAMES.get(name, name), finite[name])


def _metrics(summary: Mapping[str, Any]) -> Iterable[Section]:
    """A table for full ranking and one for each kind of sampled negatives, with a standard error where it is known."""
    test = summary["test"]
    for start, title in protocols(test):
        names = [name for name in test if name.startswith(start) and _is_metric(name.removeprefix(start))]
        rows = [
            [NAMES.get(kind, kind), *(figure(found.get(name)) for name in names)]
            for kind, found in summary.get("baselines", {}).items()
        ]
        rows.append(["this model", *(_with_error(name.removeprefix(start), test, name) for name in names)])
        note = "With the standard error of the mean over users where it follows from the mean (hit rates)."
        yield Section(title, ["", *(name.removeprefix(start).upper() for name in names)], rows, note, True)


def _is_metric(name: str) -> bool:
    return "/" not in name and ("@" in name or name == "mrr") and not name.startswith("recall@")


def _with_error(kind: str, test: Mapping[str, Any], name: str) -> str:
    value, users = test[name], test["users"]
    if value is None or not kind.startswith("hr@") or not users:
        return figure(value)
    return f"{figure(value)} ± {math.sqrt(max(0.0, value * (1 - value)) / users):.4f}"


def _lists(summary: Mapping[str, Any]) -> Iterable[Section]:
    if found := summary.get(KEY):
        note = (
            "Share of the catalogue that is recommended to anybody; how unevenly (Gini, 0 to 1); the share of users "
            "who have a recommended item, and its self-information in bits; the mean cosine distance of two items of "
            "a list, by their texts."
        )
        yield Section("Test, beyond accuracy", ["items in a list", *FIGURES], rows_of(found), note)


def _groups(summary: Mapping[str, Any]) -> Iterable[Section]:
    if groups := summary.get("groups"):
        head, rows = group_rows({name: ranked["test"] for name, ranked in groups.items()})
        yield Section("Test, by group", head, rows)


def _bytes(summary: Mapping[str, Any]) -> Iterable[Section]:
    if moved := summary.get("bytes_per_user"):
        note = f"Rankings moved {amount(moved['evaluation'])} more, which are not included."
        head = ["", "up", "down", "total"]
        yield Section("Bytes per user, mean over all users", head, byte_rows(moved), note, True)


def _losses(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Iterable[Section]:
    """What did not count, over the whole run, by reason."""
    kinds = {"dropped_users": "users left out by their own node", "dropped_replies": "replies that did not count"}
    rows = []
    for name, what in kinds.items():
        total: Counter[str] = Counter()
        for record in records:
            total.update({reason: int(count) for reason, count in (record.get(name) or {}).items()})
        rows += [[f"{what}: {reason}", f"{count:,}"] for reason, count in total.most_common()]
    if rows:
        yield Section("What did not count, in all rounds", ["", "times"], rows)


def _data(manifest: Mapping[str, Any]) -> Iterable[Section]:
    data = manifest.get("data", {})
    if "before" not in data or "after" not in data:
        return
    rows = [
        [name, _count(value), _count(data["after"][name])]
        for name, value in data["before"].items()
        if name != "density"
    ]
    rows += [[MEANING.get(rule, rule), f"{count:,}", ""] for rule, count in data.get("counts", {}).items()]
    yield Section(f"Data: {data['name']}", ["", "before", "after preparation"], rows)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _changes(folder: Path) -> Iterable[Section]:
    changed = differences(compose([], base=None), config_in(folder))
    rows = [[change.key, shown(change.default), shown(change.value)] for change in changed]
    if rows:
        yield Section("Configuration, where it is not the default", ["key", "default", "here"], rows, text=True)


def _environment(manifest: Mapping[str, Any]) -> Section:
    versions = {"fedrec": manifest.get("fedrec"), "code": manifest.get("code"), "python": manifest.get("python")}
    rows = [[name, str(value)] for name, value in {**versions, **manifest.get("packages", {})}.items()]
    return Section("Environment", ["", "version"], [*rows, ["seed", str(manifest.get("seed"))]], text=True)


# Curves ---------------------------------------------------------------------------------------------------------------


def _curves(records: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The validations by rounds and by bytes, and the loss, as one SVG."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise FedrecError("a report needs matplotlib, which is not installed: pip install matplotlib") from error
    points = curve(records, metric)
    points = points if len(points) > 1 else []  # one is no curve
    losses = [record for record in records if isinstance(record.get("loss"), int | float)]
    panels: list[tuple[str, str, Sequence[float], Sequence[float]]] = []
    if points:
        values = [point.value for point in points]
        panels.append(("round", f"{metric.upper()} at validation", [point.round for point in points], values))
        if all(point.bytes for point in points):  # central training moves none
            moved = [(point.bytes or {})["total"] / 1e6 for point in points]
            panels.append(("MB per user", f"{metric.upper()} at validation", moved, values))
    if losses:
        panels.append(("round", _LOSS, [each["round"] for each in losses], [each["loss"] for each in losses]))
    if not panels:
        return ""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedrec", "font.family": "sans-serif", "font.size": 9}):
        drawing = Figure(figsize=(4.0 * len(panels), 2.9), layout="constrained")
        drawing.patch.set_alpha(0.0)
        for axes, panel in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _panel(axes, *panel)
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)


def _panel(axes: Axes, across: str, up: str, places: Sequence[float], values: Sequence[float]) -> None:
    loss = up == _LOSS
    axes.plot(places, values, color=_SECOND if loss else _LINE, marker="o" if len(values) < 60 else "", ms=3)
    if not loss:
        axes.set_ylim(0, 1.15 * max(values) or 1.0)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_GREY)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(_GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.grid(alpha=0.2)
