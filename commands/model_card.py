"""`fedrec card`: what a trained model is, on one page in the form of the Hugging Face hub.

It says only what the run's own files hold: data, training, results beside the baselines, what a user moved, what was
promised of privacy, and what nobody should expect of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from commands.changes import shown
from commands.progress import amount, figure
from commands.report import protocols
from fedrec.config.compose import compose
from fedrec.config.describe import differences, of_this_machine
from fedrec.config.resume import config_in
from fedrec.core.disk import reading, writing
from fedrec.core.errors import FedrecError
from fedrec.core.strict_json import parsed_object
from fedrec.core.whole_files import write_text
from fedrec.data.report import MEANING
from fedrec.evaluation.baselines import NAMES
from server_app.run_folder import MANIFEST, SUMMARY

NAME = "README.md"
"""What the hub shows as a model's card."""

_OURS = "---\nlibrary_name: fedrec\n"
"""How a card begins: such a file is made anew."""


def write_card(folder: Path, out: Path | None) -> Path:
    """Write the card of a finished run; where it is.

    Args:
        folder: The run's.
        out: The file; None: `NAME` in the run's folder.

    Raises FedrecError if the run has not ended, its files are damaged, another file is there, or the disk refuses.
    """
    with reading(f"{folder} is not the folder of a finished run: {SUMMARY}", "give runs/<id>"):
        summary = parsed_object((folder / SUMMARY).read_text(encoding="utf-8"))
        manifest = parsed_object((folder / MANIFEST).read_text(encoding="utf-8"))
    if "baseline" in summary:
        raise FedrecError(f"{folder} is that of a baseline, which has no model that was trained by a federation")
    with reading(f"{folder}: what {SUMMARY} and {MANIFEST} hold", "restore the run folder from a copy"):
        text = card(folder, summary, manifest)
    path = out or folder / NAME
    if path.exists() and (out is not None or not path.read_text(encoding="utf-8", errors="replace").startswith(_OURS)):
        raise FedrecError(f"{path}: there is such a file already; give another name with --out, or remove it")
    with writing(f"the card {path}", "give another file with --out"):
        write_text(path, text)
    return path


def card(folder: Path, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The card of a run: front matter that the hub reads, and a page in Markdown."""
    config = config_in(folder)
    parts = [config.strategy.name, config.embedding.name, config.backbone.name]
    name, data = Path(str(summary["run"])).name, manifest["data"]
    places = of_this_machine(config)
    changed = [each for each in differences(compose([], base=None), config) if each.key not in places]
    settings = [[f"`{change.key}`", f"`{shown(change.value)}`"] for change in changed]
    sections = [
        f"# {name}",
        f"A recommender that was trained by federated learning with fedrec {manifest['fedrec']}: strategy "
        f"`{parts[0]}`, item embedding `{parts[1]}`, backbone `{parts[2]}`, on the data set `{data['name']}`.",
        "## Results",
        *_results(summary),
        *(str(summary[key]) for key in ("standing", "share", "chosen") if key in summary),
        *(f"Warning: {warning}" for warning in summary.get("warnings", ())),
        "## Data",
        _table(["", "before", "after preparation"], _data(data)),
        "## Training",
        f"{summary['rounds']:,} rounds, seed {manifest['seed']}. What is not the default:",
        _table(["key", "value"], settings) if settings else "Nothing.",
        "## What a user moved",
        *_bytes(summary),
        "## Privacy",
        *_privacy(summary),
        "## Limits",
        "The figures are means over the users of this data set, ranked on the last item of each; they say nothing of "
        "users or items that it does not have. A model that learns from what people did repeats it, and favours what "
        "was popular. Private tensors of users are no part of the model: they are on their devices.",
        "## Use",
        f"With fedrec: `fedrec recommend {name} --history ITEM,ITEM`, or `fedrec export {name} --out FOLDER` for the "
        "item vectors.",
    ]
    front = yaml.safe_dump(_front(name, summary, data), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front(name: str, summary: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads of a card: see its page on model cards."""
    metrics = [
        {"type": kind, "value": value, "name": kind.upper()}
        for kind, value in summary["test"].items()
        if value is not None and _is_metric(kind)
    ]
    task = {"type": "recommendation", "name": "Recommendation, full ranking of the last item of each user"}
    about = {"type": str(data["name"]), "name": str(data["name"])}
    return {
        "library_name": "fedrec",
        "tags": ["recommendation", "federated-learning", "fedrec"],
        "model-index": [{"name": name, "results": [{"task": task, "dataset": about, "metrics": metrics}]}],
    }


def _is_metric(kind: str) -> bool:
    return "/" not in kind and (kind == "mrr" or kind.startswith(("ndcg@", "hr@")))


def _results(summary: Mapping[str, Any]) -> Iterable[str]:
    for start, title in protocols(summary["test"]):
        names = [name for name in summary["test"] if name.startswith(start) and _is_metric(name.removeprefix(start))]
        rows = [
            [NAMES.get(kind, kind), *(figure(found.get(name)) for name in names)]
            for kind, found in summary.get("baselines", {}).items()
        ]
        rows.append(["**this model**", *(f"**{figure(summary['test'][name])}**" for name in names)])
        yield f"{title}, {int(summary['test']['users']):,} users:"
        yield _table(["", *(name.removeprefix(start).upper() for name in names)], rows)


def _data(data: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [name, f"{before:,}", f"{data['after'][name]:,}"]
        for name, before in data["before"].items()
        if name != "density"
    ]
    return rows + [[MEANING.get(rule, rule), f"{count:,}", ""] for rule, count in data.get("counts", {}).items()]


def _bytes(summary: Mapping[str, Any]) -> Iterable[str]:
    moved = summary.get("bytes_per_user")
    if not moved:
        yield "Nothing: the model was trained in one place."
        return
    up, down = amount(moved["up"]), amount(moved["down"])
    yield f"In the mean {amount(moved['total'])} in the whole training: {up} up, {down} down, the rest once."


def _privacy(summary: Mapping[str, Any]) -> Iterable[str]:
    account = summary.get("privacy")
    if not account or account.get("epsilon") is None:
        yield "No differential privacy was asked for: what the updates of users tell is not bounded."
    else:
        delta = account.get("delta")
        yield (
            f"epsilon = {account['epsilon']:.3f}"
            + (f" at delta = {delta:g}" if delta else "")
            + f" ({account['unit']})."
        )
    if account and account.get("caveat"):
        yield str(account["caveat"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
