"""Random transformers of four layers for tests; no weights come from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
from torch import nn

from fedrec.language.loading import Lora

Style: TypeAlias = Literal["bert", "llama", "gemma"]

WIDTH: Final = 16
VOCABULARY: Final = 50


class Tiny(NamedTuple):
    """A saved model (`folder`), the model itself in float64 without LoRA, and where LoRA goes."""

    folder: Path
    model: nn.Module
    lora: Lora


def tiny(style: Style, folder: Path) -> Tiny:
    """A random model, saved in a folder: bidirectional, causal, or causal with two kinds of layers.

    Biases and norms, which start at nothing, are random too.
    """
    from transformers import AutoModel, BertConfig, Gemma3TextConfig, LlamaConfig, PretrainedConfig

    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    config: PretrainedConfig
    if style == "bert":
        config = BertConfig(**common)
    elif style == "llama":
        config = LlamaConfig(**common, num_key_value_heads=1)
    else:
        kinds = ["sliding_attention", "full_attention"] * 2
        config = Gemma3TextConfig(**common, num_key_value_heads=1, head_dim=8, sliding_window=3, layer_types=kinds)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)  # type: ignore[operator]
    targets = ("query", "value") if style == "bert" else ("q_proj", "v_proj")
    return Tiny(folder, model.double().eval(), Lora(rank=2, alpha=4.0, targets=targets))
