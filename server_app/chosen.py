"""Which round's model a run was tested with, in a sentence, and why that one."""

from __future__ import annotations

from federation.base import FederatedStrategy


def chosen(strategy: FederatedStrategy) -> str:
    """Says it of a run that has ended."""
    best, last, planned = strategy.choice.best, strategy.after, strategy.config.rounds
    if best is None and strategy.setup.validation:
        return (
            f"the model is that of the last round, {last}: privacy={strategy.setup.privacy['name']} accounts for what "
            "updates give away and charges nothing for metrics, so validation chooses no round"
        )
    if best is None:
        return f"the model is that of the last round, {last}: without validation no other can be chosen"
    ended = ""
    if last < planned:
        ended = (
            f"; the run ended after {last} of {planned} rounds, because the last {strategy.config.patience} "
            "validations were no better (strategy.patience)"
        )
    which = "which is also the last" if best.round == last else f"not of the last, {last}"
    return f"the model is that of round {best.round}, with the best validation, {which}{ended}"
