"""What an untrained encoder makes of users' texts, and what training does to it by the scale of its scores.

    python -m benchmarks.user_texts measure --data FOLDER --vectors FILE --to FILE
    python -m benchmarks.user_texts page [--check]         the kept results into docs/fellrec.md

Users, texts, item vectors and prefixes are those of the experiment `language_model` on Amazon Industrial, with the
titles and brands of items. Texts go through all-MiniLM-L6-v2 once, and their vectors are kept in a file, so that
trying something takes seconds. What is trained in place of LoRA is a low-rank map of a user's vector u, which becomes
(u + u A B) of length one, on everybody's next item after a prefix; the vectors of items stay, as in the experiment.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, softplus

from benchmarks import documents
from benchmarks.common import ROOT
from benchmarks.split import _folder
from client_app.homes.users import Cohort
from client_app.training.contexts import reading
from commands.baseline.world import World
from fedrec.backbones.language_model import LanguageModel
from fedrec.config.compose import compose
from fedrec.config.paths import settle
from fedrec.language.models import register
from server_app.watching import Silent

RESULTS = ROOT / "benchmarks" / "results" / "user-texts"
PAGE = ROOT / "docs" / "fellrec.md"
SCALES, TRAINED_SCALES = (2, 4, 6, 8, 10, 12, 16, 20), (8, 20)
MEANS = (0.0, 0.5, 1.0, 2.0)
RANK, STEPS, USERS, NEGATIVES, RATE, SEEDS = 16, 100, 64, 1_000, 0.003, (0, 1, 2)
_K, _BATCH, _AT_ONCE = 10, 64, 512


@dataclass(frozen=True)
class Told:
    """What users have read, and what is to be predicted of it.

    Attributes:
        texts: [users, width], the vectors of their texts, of length one.
        mean: [users, width], the decaying means of their items' vectors, with a half-life of one item.
        known: For each user int64 [n], the items that are no candidates.
        targets: int64 [users], the next item of each.
    """

    texts: Tensor
    mean: Tensor
    known: list[NDArray[np.int64]]
    targets: Tensor

    def states(self, weight: float) -> Tensor:
        """With so much of the mean."""
        return self.texts + weight * self.mean


def decaying(items: NDArray[np.int64], vectors: Tensor) -> Tensor:
    """The mean [width] of the vectors of some items, the oldest first, each of half the weight of the next."""
    weights = torch.exp2(torch.arange(len(items), dtype=vectors.dtype) - len(items))
    return weights @ vectors[torch.from_numpy(items)] / weights.sum()


def ndcg(states: Tensor, told: Told, vectors: Tensor, eligible: NDArray[np.int64]) -> float:
    """The mean NDCG@10 of the targets among the eligible items that a user does not know; equal scores in any order.

    Items whose texts are alike have equal scores: short texts make many of them.
    """
    upto = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, _K + 2)))])
    found = []
    candidates = torch.full((len(vectors),), -torch.inf)
    candidates[torch.from_numpy(eligible)] = 0.0
    for first in range(0, len(states), _AT_ONCE):
        last = min(first + _AT_ONCE, len(states))
        scores = states[first:last] @ vectors.T
        own = scores.gather(1, told.targets[first:last, None])
        scores += candidates
        for row, known in enumerate(told.known[first:last]):
            scores[row, torch.from_numpy(known)] = -torch.inf
        before, up_to = (scores > own).sum(1).numpy(), (scores >= own).sum(1).numpy()
        gains = upto[np.minimum(up_to, _K)] - upto[np.minimum(before, _K)]
        found += (gains / (up_to - before)).tolist()
    return float(np.mean(found))


def uncertainty(states: Tensor, targets: Tensor, vectors: Tensor, negatives: Tensor) -> Tensor:
    """The mean over users of -log of the target's share against the same negatives [n]: what training lowers."""
    return softplus((states @ vectors[negatives].T).logsumexp(1) - (states * vectors[targets]).sum(1)).mean()


def trained_map(told: Told, scale: float, weight: float, vectors: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Train the map in `STEPS` steps on `USERS` users each; what it makes of vectors of texts."""
    rng, width = torch.Generator().manual_seed(seed), vectors.shape[1]
    down = (torch.randn(width, RANK, generator=rng) / width**0.5).requires_grad_()
    up = torch.zeros(RANK, width, requires_grad=True)
    optimiser = torch.optim.Adam([down, up], lr=RATE, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)

    def moved(texts: Tensor) -> Tensor:
        return normalize(texts + texts @ down @ up, dim=1)

    for _ in range(STEPS):
        some = torch.randperm(len(told.targets), generator=rng)[:USERS]
        negatives = torch.randint(len(vectors), (NEGATIVES,), generator=rng)
        states = scale * (moved(told.texts[some]) + weight * told.mean[some])
        optimiser.zero_grad()
        uncertainty(states, told.targets[some], vectors, negatives).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        falling.step()
    return lambda texts: moved(texts).detach()


def encoded(folder: Path, texts: Sequence[Tensor]) -> Tensor:
    """The mean last hidden state of each text, of length one [texts, width]; texts of like length go together."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
    made = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda text: len(texts[text]))
    with torch.no_grad():
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            tokens = torch.nn.utils.rnn.pad_sequence([texts[text] for text in some], batch_first=True)
            there = torch.nn.utils.rnn.pad_sequence([torch.ones_like(texts[text]) for text in some], batch_first=True)
            hidden = model(input_ids=tokens, attention_mask=there).last_hidden_state
            made[some] = normalize((hidden * there.unsqueeze(-1)).sum(1), dim=1)
    return made


def histories(world: World) -> dict[str, tuple[list[NDArray[np.int64]], list[NDArray[np.int64]], Tensor]]:
    """What is read, what is no candidate and the target: in training (a prefix a user), validation and test."""
    everyone = world.users.held_out(world.users.evaluated("validation"), "validation")[0]
    long = everyone.select(np.flatnonzero(everyone.lengths > 1))
    read = reading(long, world.recipe, 0)
    prefixes = [items[:fitted] for items, fitted in zip(_rows(read.runs), read.fitted, strict=True)]
    following = [items[fitted] for items, fitted in zip(_rows(read.runs), read.fitted, strict=True)]
    found = {"training": (prefixes, _rows(long), torch.tensor(following))}
    for of in ("validation", "test"):
        cohort, positives = world.users.held_out(world.users.evaluated(of), of)  # type: ignore[arg-type]
        found[of] = (_rows(cohort), _rows(cohort), torch.from_numpy(positives))
    return found


def _rows(cohort: Cohort) -> list[NDArray[np.int64]]:
    return [cohort.part(user, user + 1).items for user in range(len(cohort))]


def measure(world: World, model: Path, kept: Path) -> dict[str, Any]:
    """All that is shown; vectors of texts are read from the file `kept`, or made and written there."""
    backbone, start = cast(LanguageModel, world.model.backbone), world.start(None)
    vectors, tokens = start.frozen["base"].float(), start.frozen["backbone.tokens"]
    latest = backbone.config.items
    read = histories(world)
    if not kept.exists():
        texts = {of: [backbone.text(torch.from_numpy(items), tokens) for items in rows[0]] for of, rows in read.items()}
        torch.save({of: encoded(model, each) for of, each in texts.items()}, kept)
    made = torch.load(kept, weights_only=True)
    told = {
        of: Told(made[of], torch.stack([decaying(items[-latest:], vectors) for items in rows]), known, targets)
        for of, (rows, known, targets) in read.items()
    }
    eligible = world.sampler.eligible

    def ranked(of: str, states: Tensor) -> float:
        return ndcg(states, told[of], vectors, eligible)

    popularity = torch.from_numpy(np.bincount(np.concatenate(told["validation"].known), minlength=len(vectors))).float()
    alone: dict[str, dict[str, float]] = {"popularity": {}, "last item": {}, "decaying mean": {}, "text": {}}
    for of in ("validation", "test"):
        one = torch.ones(len(told[of].targets), 1)
        alone["popularity"][of] = ndcg(one, told[of], popularity.unsqueeze(1), eligible)
        alone["last item"][of] = ranked(of, vectors[torch.tensor([int(items[-1]) for items in told[of].known])])
        alone["decaying mean"][of] = ranked(of, told[of].mean)
        for weight in MEANS:
            name = f"text and {weight:g} x decaying mean" if weight else "text"
            alone.setdefault(name, {})[of] = ranked(of, told[of].states(weight))
    negatives = torch.randint(len(vectors), (NEGATIVES,), generator=torch.Generator().manual_seed(0))
    sure = {
        str(scale): float(uncertainty(scale * told["training"].texts, told["training"].targets, vectors, negatives))
        for scale in SCALES
    }
    trained = []
    for scale in TRAINED_SCALES:
        for seed in SEEDS:
            moved = trained_map(told["training"], scale, 0.0, vectors, seed)
            found: dict[str, Any] = {"scale": scale, "seed": seed}
            for of in ("validation", "test"):
                states = moved(told[of].texts)
                found[of] = {f"{weight:g}": ranked(of, states + weight * told[of].mean) for weight in MEANS}
            trained.append(found)
    return {"users": len(told["test"].targets), "untrained": alone, "loss": sure, "trained": trained}


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of the page."""
    lines = ["\n| untrained | validation NDCG@10 | test |\n|---|---:|---:|\n"]
    for name, found in result["untrained"].items():
        lines.append(f"| {name} | {found['validation']:.4f} | {found['test']:.4f} |\n")
    sure = result["loss"]
    scales = f"\n| scale | {' | '.join(sure)} |\n|---|{'---:|' * len(sure)}\n"
    scales += f"| training loss of the text, untrained | {' | '.join(f'{value:.2f}' for value in sure.values())} |\n"
    head = "\n| map trained with scale | seeds | validation, text alone | test | validation, with the mean | test |\n"
    rows = [head, "|---:|---:|---:|---:|---:|---:|\n"]
    for scale in TRAINED_SCALES:
        mine = [each for each in result["trained"] if each["scale"] == scale]
        cells = [np.mean([each[of][mean] for each in mine]) for mean in ("0", "1") for of in ("validation", "test")]
        rows.append(f"| {scale} | {len(mine)} | {' | '.join(f'{cell:.4f}' for cell in cells)} |\n")
    return {"user-texts": "".join([*lines, scales, *rows, "\n"])}


def world_of(data: Path, model: Path) -> World:
    """The experiment's, of Amazon Industrial."""
    folder = data / "amazon-industrial"
    given = ["experiment=language_model", "dataset=table", "dataset.text_columns=[title,brand]"]
    given += [f"dataset.interactions={folder}/interactions.csv", f"dataset.item_table={folder}/items.csv"]
    given += [f"encoder.model={model}", f"backbone.model={register(model)}"]
    config = settle(compose(given, base=None), None)
    return World.read(config, config.cache_dir, Silent())


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.user_texts", description="Users' texts and scales.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    for name in ("--data", "--vectors", "--to"):
        measuring.add_argument(name, type=Path, required=True)
    verbs.add_parser("page").add_argument("--check", action="store_true", help="exit 1 if the page has other tables")
    chosen = parser.parse_args(arguments)
    if chosen.verb == "measure":
        result = measure(world_of(chosen.data, _folder()), _folder(), chosen.vectors)
        chosen.to.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return 0
    result = json.loads((RESULTS / "industrial.json").read_text(encoding="utf-8"))
    command = "python -m benchmarks.user_texts page"
    return documents.write(PAGE, tables(result), command=command, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
