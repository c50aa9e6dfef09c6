"""What the guide says of a model of seven billion parameters is what the code makes of its configuration."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from transformers import MistralConfig

from client_app.training.cohort import _PER_PAIR
from fedrec.backbones import text
from fedrec.backbones.language_model import LanguageModel
from fedrec.config.describe import load_member
from fedrec.language.layers import PARTS
from fedrec.language.loading import Lora, _empty, outline
from fedrec.language.models import Sizes

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "fellrec.md").read_text(encoding="utf-8")
DIM, LAYERS, HEADS, VOCABULARY, ITEMS = 4096, 32, 32, 32_000, 3_540


def told(start: str) -> str:
    """The last cell of the row of the guide that begins so."""
    (row,) = re.findall(rf"^\| {re.escape(start)}.*$", GUIDE, re.MULTILINE)
    return str(row.split("|")[-2].strip())


def test_the_guides_figures_of_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MistralConfig(
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=8,
        intermediate_size=14_336,
        vocab_size=VOCABULARY,
    )
    lora = Lora(8, 16.0, ("q_proj", "v_proj"))
    trained = sum(math.prod(spec.shape) for spec in outline(config, lora, 0).tensors.values())
    assert told("LoRA of rank 8") == f"{4 * trained / 1e6:.1f} MB"
    model = _empty(config, lora, PARTS, 0)
    weights = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" not in name)
    assert told("parameters without the head") == f"{2 * weights / 1e9:.1f} GB"
    assert told(f"vectors of {ITEMS:,} items") == f"{4 * ITEMS * DIM / 1e6:.1f} MB"

    monkeypatch.setattr(text, "sizes_of", lambda digest: Sizes(DIM, LAYERS, HEADS, 32_768, VOCABULARY))
    for tokens, row in ((64, "what a training text of 64 tokens holds"), (128, "the same of one of 128 tokens")):
        given = {"model": "0" * 64, "length": tokens, "item_tokens": tokens}
        held = LanguageModel(load_member("backbone", "language_model", **given), DIM).numbers_per_history(20)
        assert told(row) == f"{4 * held / 1e9:.2f} GB"
        for pairs, users in ((65_536, 5), (16_384, 1)) if tokens == 64 else ():
            assert pairs // (held // (_PER_PAIR * DIM) + 20) == users, "how many of up to 20 items train at once"
