"""The end of a run, for people: how well it ranks, beside what needs no training, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from commands.list_figures import KEY, lists_table
from commands.progress import amount, duration, figure
from federation.reports import fact_line
from fedrec.evaluation.baselines import NAMES
from fedrec.evaluation.over_groups import MEAN, SPREAD, WORST, over_groups


def show_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print a run's `summary.json`: a table of metrics, a table of bytes, and where everything is."""
    for prefix, title in protocols(summary["test"]):
        console.print(_metrics_table(summary, prefix, title))
    if lists := summary.get(KEY):
        console.print(lists_table(lists))
    if groups := summary.get("groups"):
        console.print(_groups_table({name: ranked["test"] for name, ranked in groups.items() if "test" in ranked}))
    console.print(_bytes_table(summary["bytes_per_user"]))
    cold = int(summary["test"].get("cold_users", 0))
    users = int(summary["test"]["users"])
    seconds = duration(summary["seconds"])
    console.print(f"{summary['rounds']} rounds in {seconds}; {users:,} users ranked, {cold:,} of them never trained")
    console.print(summary["chosen"], soft_wrap=True, highlight=False, markup=False)
    for warning in summary.get("warnings", ()):
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False, style="yellow")
    for phase, facts in summary.get("embedding", {}).items():
        console.print(f"{phase} started with {fact_line(facts)}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"run folder: {summary['run']}", soft_wrap=True, highlight=False, markup=False)
    if "share" in summary:
        console.print(summary["share"], soft_wrap=True, highlight=False, markup=False)
    style = "yellow" if summary["ahead"] is False else None
    warned = "warning: " if summary["ahead"] is False else ""
    console.print(warned + summary["standing"], soft_wrap=True, highlight=False, markup=False, style=style)


def show_baseline(summary: Mapping[str, Any], console: Console) -> None:
    """Print the `summary.json` of `fedrec baseline`: the metrics, and where everything is. Nothing was sent."""
    name = str(summary.get("member") or summary["baseline"])
    # A member is one of the baselines itself; what is noised stands beside the exact one.
    others = {key: value for key, value in summary["baselines"].items() if key != summary.get("member")}
    own = NAMES.get(name, name) + (", noised" if "privacy" in summary else "")
    for prefix, title in protocols(summary["test"]):
        console.print(_metrics_table({**summary, "baselines": others}, prefix, title, own))
    validated = summary["validation"]
    best = f", the best validation after epoch {summary['best_round']}" if validated and "best_round" in summary else ""
    if shown := ", ".join(f"{key} {figure(value)}" for key, value in validated.items() if "@10" in key):
        console.print(f"validation: {shown}", soft_wrap=True, highlight=False)
    console.print(f"{summary['baseline']} in {duration(summary['seconds'])}{best}; {summary['test']['users']:,} users")
    console.print(f"run folder: {summary['run']}", soft_wrap=True, highlight=False, markup=False)


def protocols(test: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of each way in which users were ranked, how its metrics' names begin, and what its table is called."""
    prefixes = sorted({name.rpartition("/")[0] for name in test})
    return [(f"{name}/" if name else "", f"Test, {name or 'full ranking'}") for name in prefixes]


def _metrics_table(summary: Mapping[str, Any], prefix: str, title: str, own: str = "this model") -> Table:
    shown = [name for name in ("hr@10", "ndcg@10") if prefix + name in summary["test"]]
    names = shown or [name for name in summary["test"] if name.startswith(prefix) and "@" in name][:2]
    names = [prefix + name if shown else name for name in names] + [f"{prefix}mrr"]
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name.removeprefix(prefix).upper(), justify="right")
    for name, metrics in summary["baselines"].items():
        table.add_row(NAMES.get(name, name), *(figure(metrics[column]) for column in names), style="dim")
    table.add_row(own, *(figure(summary["test"][column]) for column in names), style="bold")
    return table


def group_rows(groups: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Names of columns, and a row for each group's metrics.

    Three more have the mean over groups, whatever their size, the lowest, and the standard deviation.
    """
    first = next(iter(groups.values()))
    names = [name for name in ("hr@10", "ndcg@10", "mrr") if name in first]
    rows = [
        [name, f"{int(metrics['users']):,}", *(figure(metrics[column]) for column in names)]
        for name, metrics in groups.items()
    ]
    found = over_groups(groups)
    for name, over in (("mean of the groups", MEAN), ("worst", WORST), ("standard deviation", SPREAD)):
        rows.append([name, "", *(figure(found[column][over]) for column in names)])
    return ["", "users", *(name.upper() for name in names)], rows


def byte_rows(moved: Mapping[str, Any]) -> list[list[str]]:
    """Up, down and total: a row for each phase, for what is sent once or with merges, and the sum of all last."""
    rows = [
        [phase, amount(ways["up"]), amount(ways["down"]), amount(ways["up"] + ways["down"])]
        for phase, ways in moved["by_phase"].items()
    ]
    rows.append(["one-time (setup, frozen tensors)", "", "", amount(moved["one_time"])])
    if moved.get("merges"):
        rows.append(["merges into tables, and steps", "", amount(moved["merges"]), amount(moved["merges"])])
    return [*rows, ["total", amount(moved["up"]), amount(moved["down"]), amount(moved["total"])]]


def _groups_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    head, rows = group_rows(groups)
    table = Table(title="Test, by group", title_justify="left")
    for column in head:
        table.add_column(column, justify="right" if column else "left")
    for number, row in enumerate(rows):
        table.add_row(*row, style=None if number < len(groups) else "bold")
    return table


def _bytes_table(moved: Mapping[str, Any]) -> Table:
    table = Table(title="Bytes per user, mean over all users", title_justify="left")
    for column in ("", "up", "down", "total"):
        table.add_column(column, justify="right" if column else "left")
    *rows, total = byte_rows(moved)
    for row in rows:
        table.add_row(*row)
    table.add_row(*total, style="bold")
    table.add_row("evaluation (not included)", "", "", amount(moved["evaluation"]), style="dim")
    return table
