"""Whether what was typed leaves the recipe open: then `fedrec train` and `simulate` choose it, as `tune` does."""

from __future__ import annotations

from collections.abc import Sequence

from fedrec.config.compose import EXPERIMENT
from fedrec.config.paths import key_of
from fedrec.config.schema import RunConfig

APART = (
    *("dataset", "encoder", "reduction", "base_table.start", "evaluation", "simulation", "network", "tracker"),
    *("engine", "pairs_at_once", "seed", "run_id", "runs_dir", "cache_dir", "checkpoint_every", "checkpoints_kept"),
)
"""Groups, sections and keys that say on what a run works, where, and how it is ranked: nothing of the recipe."""

AS_TYPED = (
    "trained as typed, on top of the defaults, whether they suit the data or not; where nothing of the recipe is "
    "typed, `fedrec train` and `fedrec simulate` find out which experiment=NAME does"
)
"""What a person is told where nothing is tried, and no experiment is named."""


def leaves_recipe_open(overrides: Sequence[str], config: RunConfig) -> bool:
    """Whether none of the overrides says how to train, and validation, by which a recipe is chosen, is on."""
    return bool(config.evaluation.validation and config.evaluation.every) and types_no_recipe(overrides)


def types_no_recipe(overrides: Sequence[str]) -> bool:
    """Whether none of the overrides says how to train."""
    return all(key in APART or key.partition(".")[0] in APART for key in map(key_of, overrides))


def names_recipe(overrides: Sequence[str]) -> bool:
    """Whether one of the overrides names an experiment, or a run to resume: both say what the recipe is."""
    return any(key_of(text) in (EXPERIMENT, "resume") for text in overrides)


def told(candidates: Sequence[str]) -> str:
    """What a person is told beforehand."""
    return (
        f"nothing of the recipe is typed: {', '.join(candidates)} are tried by validation, as by `fedrec tune`; "
        "experiment=NAME, or any other part of a recipe, is trained as it is"
    )
