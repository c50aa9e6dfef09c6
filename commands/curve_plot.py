"""The picture of a comparison: accuracy by bytes of one user, by rounds, and by simulated time, of all runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING

from commands.compare import Comparison, Run
from commands.progress import amount
from fedrec.core.disk import writing
from fedrec.core.errors import FedrecError
from fedrec.core.whole_files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#dd7733", "#332288", "#777777")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one less than colours: the tenth run has its own look, too
_GREY = "#333333"


def draw(found: Comparison, path: Path) -> None:
    """Write the picture as a PNG file.

    What is not federated is a level beside the curves of runs, or has curves by epochs where there is no run.

    Raises FedrecError if matplotlib is not installed, nothing has a curve, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise FedrecError("a plot needs matplotlib, which is not installed: pip install matplotlib") from error
    if path.suffix.lower() != ".png":
        raise FedrecError(f"--plot {path}: expected the name of a .png file")
    looks = dict(
        zip((run.name for run in found.runs), zip(cycle(_COLOURS), cycle(_MARKERS), strict=False), strict=False)
    )
    federated = [run for run in found.runs if run.bytes is not None and run.points]
    alone = [run for run in found.runs if run not in federated]
    timed = [run for run in federated if run.points[-1].seconds is not None]
    figure = Figure(layout="constrained")
    if federated:
        panels = list(figure.subplots(1, 3 if timed else 2, sharey=True))
        _by_bytes(panels[0], federated, looks)
        _by_rounds(panels[1], federated, looks, "rounds")
        if timed:
            _by_time(panels[2], timed, looks)
        for panel, run in product(panels, alone):
            panel.axhline(run.best, color=looks[run.name][0], ls="--", lw=1.3, label=f"{run.name} (no federation)")
    elif curves := [run for run in alone if run.points]:
        panels = [figure.subplots()]
        _by_rounds(panels[0], curves, looks, "epochs")
    else:
        raise FedrecError("nothing that was named has a curve to plot: name runs with validations on the way")
    for panel in panels:
        panel.axhline(found.ceiling.value, color=_GREY, lw=1, ls=":", zorder=1)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("NDCG@10 at validation")
    panels[0].set_ylim(0, 1.1 * max(found.ceiling.value, *(run.best for run in found.runs)))
    above = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
    label = f"ceiling {found.ceiling.value:.4f}"
    panels[0].annotate(label, (0.01, found.ceiling.value), **above, fontsize=8, color=_GREY)
    handles, labels = panels[min(1, len(panels) - 1)].get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 60 or len(labels) == 1 else 2
    lines = -(-len(labels) // columns)  # of the legend, below: the axes keep their height however many runs there are
    figure.set_size_inches({1: 6.5, 2: 10.5, 3: 14.5}[len(panels)], 4.0 + 0.2 * lines)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    with writing(f"--plot {path}: the file", "give another one"), replaced(path) as started:
        figure.savefig(started, format="png", dpi=130, metadata={"Software": None})


def _by_bytes(axes: Axes, runs: Sequence[Run], looks: Mapping[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for run in runs:
        _line(axes, run, [(point.bytes or {})["total"] for point in run.points], looks[run.name])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _bytes(count)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes per user since the start, up, down and once (log)")


def _by_rounds(axes: Axes, runs: Sequence[Run], looks: Mapping[str, tuple[str, str]], unit: str) -> None:
    for run in runs:
        _line(axes, run, [point.round for point in run.points], looks[run.name])
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)


def _by_time(axes: Axes, runs: Sequence[Run], looks: Mapping[str, tuple[str, str]]) -> None:
    for run in runs:
        _line(axes, run, [point.seconds or 0.0 for point in run.points], looks[run.name])
    axes.set_xscale("log")
    axes.set_xlabel("simulated seconds since the start (log)")


def _line(axes: Axes, run: Run, places: Sequence[float], look: tuple[str, str]) -> None:
    values = [point.value for point in run.points]
    colour, marker = look
    axes.plot(places, values, color=colour, marker=marker, ms=3.5, lw=1.6, label=run.name)


def _bytes(count: float) -> str:
    """As on an axis: `500 kB`, `2 MB`."""
    number, unit = amount(count).split(" ")
    return f"{number.removesuffix('.0')} {unit}"
