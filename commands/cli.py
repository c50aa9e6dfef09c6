"""The `fedrec` command: what the user types becomes a configuration, and a configuration becomes a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from commands.audit.cli import audit_app
from commands.changes import change_as_dict, changes_table, shown
from commands.ending import command_line, ending
from commands.open_recipe import AS_TYPED, leaves_recipe_open, names_recipe, told
from commands.options import AsJson, Overrides, prepared
from commands.overrides_help import BaselineCommand, OverridesCommand, PlainCommand
from fedrec import __version__
from fedrec.config.compose import compose
from fedrec.config.describe import differences, to_dict, to_yaml
from fedrec.config.paths import settle, working_directory

app = typer.Typer(
    name="fedrec",
    help="Train recommenders federatedly, with parameter-efficient updates.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the brackets of a list in an override are not markup
    pretty_exceptions_enable=False,
)

app.add_typer(audit_app, name="audit")


class BaselineKind(StrEnum):
    """What `fedrec baseline` can rank by."""

    CENTRAL = "central"
    LOCAL = "local"
    CONTENT = "content"
    POPULARITY = "popularity"
    CO_OCCURRENCE = "co_occurrence"
    RANDOM = "random"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedrec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command("config", cls=OverridesCommand)
def config_command(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved configuration, and what each override changed."""
    with ending(as_json) as (console, end):
        composed = compose(overrides or [], base=working_directory())
        found = differences(compose([], base=working_directory()), composed)
        config = settle(composed, working_directory())
        end.update(config=to_dict(config), changes=[change_as_dict(change) for change in found])
        if as_json:
            return
        if console.is_terminal:
            console.print(Syntax(to_yaml(config), "yaml", background_color="default"))
            console.print(changes_table(found))
        else:  # still a YAML file, with the changes as remarks
            print(to_yaml(config), end="")
            for change in found:
                print(f"# {change.key}: {shown(change.default)} -> {shown(change.value)}")


@app.command("describe", cls=OverridesCommand)
def describe_command(
    overrides: Overrides = None,
    items: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Items of the catalogue, instead of reading the data set.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would train, who holds it, when it crosses the network, and how many bytes that is."""
    with ending(as_json) as (console, end):
        config, _ = prepared(overrides or [])
        from commands.describe import describe, show_sizes  # the strategies and torch: as below

        found = describe(config, items)
        end.update(found.as_dict())
        if not as_json:
            show_sizes(found, console)


@app.command("train", cls=OverridesCommand)
def train_command(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train in this process, with the real server and clients but without Flower's runtime.

    If nothing of the recipe is typed, it is chosen by validation, as `fedrec tune` does.
    """
    with ending(as_json) as (console, end):
        config, same = prepared(overrides or [])
        from commands.train import train  # the apps and torch: not needed to print help or an error
        from commands.tune import CANDIDATES, tune

        if leaves_recipe_open(overrides or [], config):
            console.print(told(CANDIDATES), soft_wrap=True, highlight=False, markup=False)
            end.update(tune(overrides or [], CANDIDATES, working_directory(), console=console))
        else:
            _say_as_typed(overrides or [], console)
            end.update(train(config, same, console=console))


@app.command("tune", cls=OverridesCommand)
def tune_command(
    overrides: Overrides = None,
    among: Annotated[
        list[str] | None, typer.Option("--among", help="An experiment to try; give it once for each.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try a few experiments on your data, by validation, and train the best one: no settings are needed."""
    with ending(as_json) as (console, end):
        from commands.tune import CANDIDATES, tune  # the apps and torch: as above

        end.update(tune(overrides or [], among or CANDIDATES, working_directory(), console=console))


@app.command("split", cls=OverridesCommand)
def split_command(
    sites: Annotated[int, typer.Argument(min=1, max=1_000_000, help="Sites to share the users out to.")],
    folder: Annotated[Path, typer.Argument(help="Where the files are written.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Share a data set out by user, a file for each site, to try a deployment: `fedrec split 3 DIR dataset=ml_100k`."""
    with ending(as_json) as (console, end):
        config, _ = prepared(overrides or [])
        from commands.split import split  # as above

        dataset = split(config, sites, folder)
        end.update(folder=str(folder.absolute()), sites=sites, users=dataset.interactions.users)
        console.print(Text(f"{dataset.interactions.users} users shared out to {sites} sites below {folder}"))


@app.command("bundle", cls=PlainCommand)
def bundle_command(as_json: AsJson = False) -> None:
    """Print the SHA-256 of the app bundle that this installation is: what a site's policy lists in `apps`."""
    with ending(as_json) as (console, end):
        from commands.flower_app import bundle_digest

        end.update(sha256=bundle_digest())
        console.print(end["sha256"], soft_wrap=True, highlight=False)


@app.command("supernode", cls=PlainCommand, context_settings={"ignore_unknown_options": True})
def supernode_command(
    arguments: Annotated[
        list[str], typer.Argument(metavar="ARGUMENTS...", help="Those of flower-supernode.", show_default=False)
    ],
) -> None:
    """Start Flower's SuperNode at a site, so that it runs only the apps that the site's policy allows."""
    with ending(as_json=False):
        from commands.supernode import supernode

        supernode(arguments)


@app.command("simulate", cls=OverridesCommand)
def simulate_command(
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the whole log of the run.")] = False,
) -> None:
    """Train on Flower's simulation runtime: `flwr run` with its own home, the right environment and exit status."""
    from commands.signals import signals_as_exceptions
    from commands.superlink import SuperLink

    # Composing takes seconds, of which torch's import is most: Flower can start meanwhile.
    with ending(as_json) as (console, end), signals_as_exceptions(), SuperLink() as superlink:
        config, same = prepared(overrides or [])
        _say_as_typed(overrides or [], console)
        from commands.report import show_summary
        from commands.simulate import simulate  # as above

        end.update(simulate(config, same, console=console, verbose=verbose, superlink=superlink))
        show_summary(end, console)


@app.command("baseline", cls=BaselineCommand)
def baseline_command(
    kind: Annotated[BaselineKind, typer.Argument(help="Which one.", show_default=False)],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Rank without a federation: the same data, split, candidates and model as a run with these overrides."""
    with ending(as_json) as (console, end):
        config, same = prepared(overrides or [])
        from commands.baseline.command import baseline  # as above

        end.update(baseline(kind.value, config, same, console=console))


@app.command("compare", cls=PlainCommand)
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


@app.command("report", cls=PlainCommand)
def report_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
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


@app.command("recommend", cls=PlainCommand)
def recommend_command(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Folder of a simulated run.")] = None,
    state_dir: Annotated[
        str | None, typer.Option("--state-dir", help="On a site: the state-dir of its SuperNode, instead of RUN.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user by its id in the data.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="Items of somebody who is not in the data: ITEM,ITEM,...")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Every user whose history is here; needs --out.")] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="With --all: the .csv or .parquet file to write.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=2**31 - 1, help="How many items.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Recommend items to one user or to all, offline, from the last model and each user's own history and numbers."""
    with ending(as_json) as (console, end):
        from commands.recommend import recommend, require_one_way, show_recommendation  # torch: as above
        from commands.recommend_all import recommend_all, show_written

        require_one_way(user, history, everybody, out)
        if out is not None:
            end.update(recommend_all(run, state_dir, top, out))
            if not as_json:
                show_written(end, console)
            return
        end.update(recommend(run, state_dir, user, history, top))
        if not as_json:
            show_recommendation(end, console)


def _say_as_typed(overrides: list[str], console: Console) -> None:
    if not names_recipe(overrides):
        console.print(AS_TYPED, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the installed `fedrec`."""
    command_line(app)


if __name__ == "__main__":
    main()
