"""How a run's model stands against the best of the baselines that train nothing, in figures and in a sentence."""

from __future__ import annotations

from typing import Any

from federation.base import FederatedStrategy
from fedrec.evaluation.baselines import NAMES
from fedrec.evaluation.compared_by import curve_metric

_ERRORS = 2
"""Standard errors by which a model has to be ahead."""


def standing(strategy: FederatedStrategy) -> dict[str, Any]:
    """What the summary of a run that has ended says of it.

    Returns:
        `standing`, the sentence; `ahead`, whether the model is ahead by two standard errors, or None if nothing can be
        said; and, where there are baselines, `lead`: the baseline, the mean difference over users and its standard
        error (of the paired differences), and the number of users.
    """
    lead, rival = strategy.lead, strategy.rival
    if rival is None or lead is None or not lead.users:
        if rival is not None:
            why = "nobody was ranked by both"
        elif strategy.setup.simulation:
            why = "evaluation.baselines=false"
        else:
            why = "no deployment has everybody's interactions"
        return {
            "standing": f"nothing is said of how the model stands against untrained baselines: {why}",
            "ahead": None,
        }
    metric, error = curve_metric(strategy.ended["test"]), lead.standard_error
    figures: dict[str, Any] = {"baseline": rival.name, "metric": metric, "users": lead.users}
    figures |= {"difference": lead.mean, "standard_error": error}
    side = "above" if lead.mean >= 0 else "below"
    best = NAMES.get(rival.name, rival.name)
    beside = f"that of '{best}', the best of the untrained baselines beside it"
    said = f"{metric.upper()} is {abs(lead.mean):.4f} {side} {beside}"
    if error is None:
        return {"standing": f"{said}; one user has no standard error", "ahead": None, "lead": figures}
    ahead = lead.mean > _ERRORS * error
    sure = (
        ""
        if ahead
        else f": not ahead by {_ERRORS} standard errors; `fedrec tune` looks for what suits the data, if it has not yet"
    )
    return {
        "standing": f"{said} (standard error {error:.4f}, {lead.users:,} users){sure}",
        "ahead": ahead,
        "lead": figures,
    }
