"""The `fedrec` command: what the user types becomes a configuration, and a configuration becomes a run."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from commands.audit.cli import audit_app
from commands.changes import change_as_dict, changes_table, shown
from commands.ending import command_line, ending
from commands.kept_cli import kept_app
from commands.open_recipe import AS_TYPED, leaves_recipe_open, names_recipe, told, types_no_recipe
from commands.options import AsJson, Overrides, prepared
from commands.overrides_help import BaselineCommand, OverridesCommand, PlainCommand
from fedrec import __version__
from fedrec.config.compose import compose
from fedrec.config.describe import differences, to_dict, to_yaml
from fedrec.config.paths import settle, working_directory
from fedrec.core.errors import ConfigError
from fedrec.datasets.base import DatasetConfig

app = typer.Typer(
    name="fedrec",
    help="Train recommenders federatedly, with parameter-efficient updates.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the brackets of a list in an override are not markup
    pretty_exceptions_enable=False,
)

app.add_typer(audit_app, name="audit")
app.add_typer(kept_app)


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


@app.command("data", cls=OverridesCommand)
def data_command(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a data set is before anything is trained: sizes, tails, times, text, and what would be left out."""
    with ending(as_json) as (console, end):
        config, _ = prepared(overrides or [])
        from commands.data_facts import data_facts, show_data_facts  # pyarrow and its like: not needed to print help

        found = data_facts(cast(DatasetConfig, config.dataset))
        end.update(found.as_dict())
        if not as_json:
            show_data_facts(found, console)


@app.command("doctor", cls=PlainCommand)
def doctor_command(as_json: AsJson = False) -> None:
    """Check this installation and machine: versions, folders, room, ports, leftovers; and say what mends what."""
    with ending(as_json) as (console, end):
        from commands.doctor import doctor, require_well, show_checks

        checks = doctor()
        end.update(checks=[check._asdict() for check in checks])
        if not as_json:
            show_checks(checks, console)
        require_well(checks)


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
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, max=100_000, help="Let Optuna try so many settings of the chosen members."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try a few experiments on your data, by validation, and train the best one: no settings are needed."""
    with ending(as_json) as (console, end):
        if trials is not None and among:
            raise ConfigError(["--trials searches around what is typed, and --among names experiments: give one"])
        from commands.tune import CANDIDATES, search, tune  # the apps and torch: as above

        if trials is not None:
            end.update(search(overrides or [], trials, working_directory(), console=console))
            return
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


@app.command("model", cls=PlainCommand)
def model_command(
    source: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A folder, a GGUF file, or a name on the Hugging Face hub.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a language model into this machine's register and print its digest; without MODEL, list what is there."""
    with ending(as_json) as (console, end):
        from commands.models import add_model, show_registered  # torch: as above

        if source is None:
            end.update(models=show_registered(console))
            return
        end.update(add_model(source, revision))
        console.print(end["digest"], soft_wrap=True, highlight=False)


@app.command("bundle", cls=PlainCommand)
def bundle_command(as_json: AsJson = False) -> None:
    """Print the SHA-256 of the app bundle that this installation is: what a site's policy lists in `apps`."""
    with ending(as_json) as (console, end):
        from commands.flower_app import bundle_digest

        end.update(sha256=bundle_digest())
        console.print(end["sha256"], soft_wrap=True, highlight=False)


@app.command("spent", cls=PlainCommand)
def spent_command(
    state_dir: Annotated[
        Path, typer.Option("--state-dir", help="The state-dir of this site's SuperNode.", show_default=False)
    ],
    delta: Annotated[float, typer.Option(help="Of the epsilon of training.")] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Show what a site's users have spent of their privacy, over all runs, by the site's own ledgers."""
    with ending(as_json) as (console, end):
        from commands.spent import show_spent, spent

        end.update(spent(state_dir, delta))
        if not as_json:
            show_spent(end, console)


@app.command("forget", cls=PlainCommand)
def forget_command(
    state_dir: Annotated[
        Path, typer.Option("--state-dir", help="The state-dir of this site's SuperNode.", show_default=False)
    ],
    user: Annotated[str, typer.Option("--user", help="The user by its id in the site's file.", show_default=False)],
    undo: Annotated[bool, typer.Option("--undo", help="Let it come back: it is no longer left out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a user from what a site keeps, and leave it out from now on. Stop the SuperNode before."""
    with ending(as_json) as (console, end):
        from commands.forget import forget, show_forgotten

        end.update(forget(state_dir, user, undo=undo))
        if not as_json:
            show_forgotten(end, console)


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
    """Train on Flower's simulation runtime: `flwr run` with its own home, the right environment and exit status.

    If nothing of the recipe is typed, it is chosen by validation, in this process, before the runtime is started.
    """
    from commands.signals import signals_as_exceptions
    from commands.superlink import SuperLink

    with ending(as_json) as (console, end), signals_as_exceptions():
        if types_no_recipe(overrides or []):
            config, same = prepared(overrides or [])
            if leaves_recipe_open(overrides or [], config):
                from commands.simulate import carry_on  # as above
                from commands.tune import CANDIDATES, tune

                console.print(told(CANDIDATES), soft_wrap=True, highlight=False, markup=False)
                finish = partial(carry_on, verbose=verbose)
                base = working_directory()
                end.update(tune(overrides or [], CANDIDATES, base, console=console, finish=finish, command="simulate"))
                return
        # Composing takes seconds, of which torch's import is most: Flower can start meanwhile.
        with SuperLink() as superlink:
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


def _say_as_typed(overrides: list[str], console: Console) -> None:
    if not names_recipe(overrides):
        console.print(AS_TYPED, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the installed `fedrec`."""
    command_line(app)


if __name__ == "__main__":
    main()
