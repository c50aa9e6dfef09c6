"""How the help of a command looks, and what that of one that takes overrides says below its options."""

from __future__ import annotations

import click
from typer.core import TyperCommand

from fedrec.config.compose import experiments
from fedrec.core.registry import FAMILIES

_KEYS = (
    ("strategy.rounds=200", "how long to train"),
    ("federation.fraction=0.1", "the share of the users that train in a round"),
    ("strategy.warmup_rounds=20", "fedpeft: rounds of the whole table before it is frozen"),
    ("embedding.rank=8", "lora: numbers per item that are trained and sent"),
    ("embedding.variant=C", "the compressed part alone, without a base table"),
    ("base_table.dim=64", "numbers in an item vector"),
    ("optim.lr=0.005", "learning rate on the clients"),
    ("dataset.root=ml-1m", "where the data is; a relative path is taken against this folder"),
    ("evaluation.ks=[5,10,20]", "cut-offs of the metrics"),
    ("simulation.nodes=4", "SuperNodes that share the users (changes no result)"),
    ("seed=1", "another run of the same"),
    ("resume=<run_id>", "go on with a run that was interrupted"),
)


class PlainCommand(TyperCommand):
    """A command whose help is plain text: typer escapes brackets for markup also where there is none."""

    def get_help(self, ctx: click.Context) -> str:
        """The help, as it is printed."""
        return super().get_help(ctx).replace("\\[", "[")


class OverridesCommand(PlainCommand):
    """A command that takes overrides; its help lists the groups, their members, and the keys most often changed."""

    before_overrides = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what an override is below the options."""
        formatter.write(overrides_help(ctx.command_path + self.before_overrides))
        super().format_epilog(ctx, formatter)


class BaselineCommand(OverridesCommand):
    """The same, after the kind of baseline."""

    before_overrides = " central"


def overrides_help(command: str) -> str:
    """What overrides are, with the members that are installed and the keys most often changed."""
    groups = "\n".join(f"  {name + '=':<12}{', '.join(family.names())}" for name, family in FAMILIES.items())
    width = max(len(key) for key, _ in _KEYS) + 2
    keys = "\n".join(f"  {key:<{width}}{what}" for key, what in _KEYS)
    listed = "\n".join(f"  {name}" for name in experiments())
    return f"""
Overrides:
  group=member chooses one part of the run, section.key=value sets one value; each at most once, in any order.
  `fedrec config` shows every key and its value, `fedrec config <overrides>` what the overrides make of them.

Groups and their members:
{groups}

Keys most often changed:
{keys}

Examples:
  {command} dataset=ml_1m strategy.rounds=50
  {command} strategy=full embedding=full seed=1
  {command} embedding=lora embedding.rank=8 "dataset.root='my data/ml-100k'" dataset=ml_100k

Experiments, which choose and set several things at once (experiment=name; what else is typed wins over them):
{listed}
"""
