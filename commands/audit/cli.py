"""The commands `fedrec audit ...`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from commands.ending import ending
from commands.options import AsJson, Overrides, prepared
from commands.overrides_help import OverridesCommand

audit_app = typer.Typer(
    help="Attack a simulated federation, and say what is reached or learned.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class PromotionKind(StrEnum):
    """How `fedrec audit promotion` can attack."""

    ONE_ROW = "one_row"
    POPULARITY = "popularity"
    SURROGATE = "surrogate"
    ADAPTIVE = "adaptive"


class CandidateKind(StrEnum):
    """Who the candidates of `fedrec audit membership` are."""

    CANARIES = "canaries"
    USERS = "users"


class RecoveryKind(StrEnum):
    """What `fedrec audit recovery` reads."""

    UPDATES = "updates"
    SUMS = "sums"


@audit_app.command("promotion", cls=OverridesCommand)
def promotion_command(
    overrides: Overrides = None,
    attack: Annotated[PromotionKind, typer.Option("--attack", help="How they push.")] = PromotionKind.ADAPTIVE,
    share: Annotated[
        float, typer.Option("--share", min=0.0, max=1.0, help="Attackers, as a share of the honest users.")
    ] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Train with users among the others who push one item that few have, and count who is shown it."""
    with ending(as_json) as (console, end):
        config, same = prepared(overrides or [])
        from commands.audit.promotion import promotion, show_promotion  # torch: not needed for help

        end.update(promotion(config, same, attack.value, share, console=console))
        show_promotion(end, console)


@audit_app.command("membership", cls=OverridesCommand)
def membership_command(
    overrides: Overrides = None,
    candidates: Annotated[int, typer.Option("--candidates", help="How many, at least 10.")] = 200,
    of: Annotated[
        CandidateKind, typer.Option("--of", help="Made-up users beside the others, or some of the data's own.")
    ] = CandidateKind.CANARIES,
    as_json: AsJson = False,
) -> None:
    """Train with candidates of whom a coin says who takes part; guess the coins, and bound epsilon from below."""
    with ending(as_json) as (console, end):
        config, same = prepared(overrides or [])
        from commands.audit.membership import membership, show_membership  # torch: not needed for help

        canaries = of is CandidateKind.CANARIES
        end.update(membership(config, same, candidates, canaries=canaries, console=console))
        show_membership(end, console)


@audit_app.command("recovery", cls=OverridesCommand)
def recovery_command(
    overrides: Overrides = None,
    users: Annotated[
        int, typer.Option("--users", min=1, max=100_000, help="Who are attacked (sums: half of them).")
    ] = 50,
    of: Annotated[
        RecoveryKind, typer.Option("--of", help="The updates of users who are alone on their nodes, or sums over many.")
    ] = RecoveryKind.UPDATES,
    as_json: AsJson = False,
) -> None:
    """Train, and name users' items from the updates of those who are alone on their nodes, or from sums over many."""
    with ending(as_json) as (console, end):
        config, same = prepared(overrides or [])
        if of is RecoveryKind.SUMS:
            from commands.audit.sums import recovery_from_sums, show_sums  # torch: not needed for help

            end.update(recovery_from_sums(config, same, users, console=console))
            show_sums(end, console)
            return
        from commands.audit.recovery import recovery, show_recovery

        end.update(recovery(config, same, users, console=console))
        show_recovery(end, console)
