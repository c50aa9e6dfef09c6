"""Whether what was typed leaves the recipe open: then `fedrec train` chooses it, as `fedrec tune` does."""

from __future__ import annotations

from collections.abc import Sequence

from fedrec.config.compose import EXPERIMENT

APART = (
    *("dataset", "encoder", "reduction", "base_table.start", "evaluation", "simulation", "network", "engine"),
    *("pairs_at_once", "seed", "run_id", "runs_dir", "cache_dir", "checkpoint_every", "checkpoints_kept"),
)
"""Groups, sections and keys that say on what a run works, where, and how it is ranked: nothing of the recipe."""

AS_TYPED = (
    "trained as typed, on top of the defaults: P-LoRA by the paper's recipe, whether that suits the data or not; "
    "`fedrec tune` finds out which experiment=NAME does"
)
"""What a person is told where nothing is tried, and no experiment is named."""


def leaves_recipe_open(overrides: Sequence[str]) -> bool:
    """Whether none of the overrides says how to train, and validation, by which a recipe is chosen, is on."""
    typed = {text.partition("=")[0].strip(): text.partition("=")[2].strip().lower() for text in overrides}
    if typed.get("evaluation.validation") == "false" or typed.get("evaluation.every") == "0":
        return False
    return all(key in APART or key.partition(".")[0] in APART for key in typed)


def names_experiment(overrides: Sequence[str]) -> bool:
    """Whether one of the overrides names an experiment, or a run to resume: both say what the recipe is."""
    return any(text.partition("=")[0].strip() in (EXPERIMENT, "resume") for text in overrides)


def told(candidates: Sequence[str]) -> str:
    """What a person is told beforehand."""
    return (
        f"nothing of the recipe is typed: {', '.join(candidates)} are tried by validation, as by `fedrec tune`; "
        "experiment=NAME, or any other part of a recipe, is trained as it is"
    )
