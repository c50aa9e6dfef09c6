"""The commands about runs that are there: list and compare them, show them, and take out of them what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.ending import ending
from commands.options import AsJson
from commands.overrides_help import PlainCommand
from commands.places import require_one, require_one_way

kept_app = typer.Typer()
"""Its commands are put among those of `fedrec` itself."""

Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
SimulatedRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Folder of a simulated run.")]
StateDir = Annotated[
    str | None, typer.Option("--state-dir", help="On a site: the state-dir of its SuperNode, instead of RUN.")
]


@kept_app.command("compare", cls=PlainCommand)
def compare_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or kept runs as JSON files.")],
    ceiling: Annotated[
        str | None,
        typer.Option("--ceiling", metavar="RUN|VALUE", help="Validation NDCG@10 to be reached: of a run, or a number."),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the runs' curves.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs: accuracy, traffic, and the bytes and rounds to reach a share of a ceiling."""
    with ending(as_json) as (console, end):
        from commands.compare import compare, show_comparison

        found = compare(runs, ceiling)
        end.update(found.as_dict())
        if not as_json:
            show_comparison(found, console)
        if plot is not None:
            from commands.curve_plot import draw

            draw(found, plot)
            console.print(f"plot: {plot}", soft_wrap=True, highlight=False, markup=False)


@kept_app.command("report", cls=PlainCommand)
def report_command(
    run: Run,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE.html", help="Where the page goes; by default beside the run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a finished run as one HTML page: metrics, curves, bytes, losses, data and configuration."""
    with ending(as_json) as (console, end):
        from commands.html_report import report

        path = report(Path(run), None if out is None else Path(out))
        end.update(report=str(path))
        console.print(f"report: {path}", soft_wrap=True, highlight=False, markup=False)


@kept_app.command("recommend", cls=PlainCommand)
def recommend_command(
    run: SimulatedRun = None,
    state_dir: StateDir = None,
    user: Annotated[str | None, typer.Option("--user", help="A user by its id in the data.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="Items of somebody who is not in the data: ITEM,ITEM,...")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Every user whose history is here; needs --out.")] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="With --all: the .csv or .parquet file to write.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=2**31 - 1, help="How many items.")] = 10,
    group: Annotated[
        str | None, typer.Option("--group", help="In a run with groups, the one whose model is taken; not with --all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend items to one user or to all, offline, from the last model and each user's own history and numbers."""
    with ending(as_json) as (console, end):
        require_one_way(user, history, everybody, out, group)
        require_one(run, state_dir)
        from commands.recommend import recommend, show_recommendation  # torch: not needed for what is wrong so far
        from commands.recommend_all import recommend_all, show_written

        if out is not None:
            end.update(recommend_all(run, state_dir, top, out))
            if not as_json:
                show_written(end, console)
            return
        end.update(recommend(run, state_dir, user, history, top, group))
        if not as_json:
            show_recommendation(end, console)


@kept_app.command("similar", cls=PlainCommand)
def similar_command(
    item: Annotated[str, typer.Option("--item", help="The item by its id.", show_default=False)],
    run: SimulatedRun = None,
    state_dir: StateDir = None,
    group: Annotated[str, typer.Option("--group", help="In a run with groups: whose model.")] = "",
    top: Annotated[int, typer.Option("--top", min=1, max=2**31 - 1, help="How many items.")] = 10,
    as_json: AsJson = False,
) -> None:
    """List the items whose vectors are most like that of an item, by the cosine."""
    with ending(as_json) as (console, end):
        require_one(run, state_dir)
        from commands.item_vectors import show_similar, similar

        end.update(similar(run, state_dir, item, top, group))
        if not as_json:
            show_similar(end, console)


@kept_app.command("export", cls=PlainCommand)
def export_command(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go.", show_default=False)],
    run: SimulatedRun = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Write item vectors and what scores read of each user as Parquet and npy files, for an index of vectors."""
    with ending(as_json) as (console, end):
        require_one(run, state_dir)
        from commands.export import export, show_exported

        end.update(export(run, state_dir, out))
        if not as_json:
            show_exported(end, console)


@kept_app.command("evaluate", cls=PlainCommand)
def evaluate_command(
    run: SimulatedRun = None,
    state_dir: StateDir = None,
    top: Annotated[
        list[int] | None,
        typer.Option("--top", min=1, max=2**31 - 1, help="Items in a list; give it once for each length."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say of the users' lists how much of the catalogue is in them, how popular it is, and how various."""
    with ending(as_json) as (console, end):
        require_one(run, state_dir)
        from commands.beyond_accuracy import evaluate, show_evaluation

        end.update(evaluate(run, state_dir, top or ()))
        if not as_json:
            show_evaluation(end, console)


@kept_app.command("runs", cls=PlainCommand)
def runs_command(
    filters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Only runs with these in their configuration.", show_default=False
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--in", metavar="FOLDER", help="Where the runs are, instead of runs/.")
    ] = None,
    delete: Annotated[
        list[str] | None, typer.Option("--delete", metavar="ID", help="Delete this run; give it once for each.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder, or delete some."""
    with ending(as_json) as (console, end):
        from commands.run_list import delete_runs, runs_in, show_runs
        from fedrec.config.paths import default_runs_dir, working_directory

        place = folder or default_runs_dir(working_directory())
        if delete:
            end.update(folder=str(place), deleted=delete_runs(place, delete, filters or []))
            console.print(f"deleted: {', '.join(delete)}", soft_wrap=True, highlight=False, markup=False)
            return
        found = runs_in(place, filters or [])
        end.update(folder=str(place), runs=[run.as_dict() for run in found])
        if not as_json:
            show_runs(found, place, console)


@kept_app.command("card", cls=PlainCommand)
def card_command(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.md", help="Where it goes; by default README.md in the run's folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card of a finished run, in the form of the Hugging Face hub."""
    with ending(as_json) as (console, end):
        from commands.model_card import write_card

        path = write_card(Path(run), out)
        end.update(card=str(path))
        console.print(f"card: {path}", soft_wrap=True, highlight=False, markup=False)
