"""Random transformers of four layers for tests; no weights come from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

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


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of letters, saved in a folder: `a` is token 4, `z` 29, the end of a line 30, and all else is token 1.

    A text begins with token 2 and ends with token 3.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "\n"]
    made = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, "[UNK]"))
    made.normalizer, made.pre_tokenizer = Lowercase(), Split(Regex("."), "isolated")
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    saved = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")  # type: ignore[no-untyped-call]
    saved.save_pretrained(folder)


def small_run(model: str, *more: str) -> list[str]:
    """Overrides of a small run whose backbone is the model of a digest, and what else is given; this wins."""
    given = [
        *("strategy=fedpeft", "strategy.warmup_rounds=0", "strategy.rounds=2", "optim=fast", "optim.server.lr=0.05"),
        *("backbone=language_model", f"backbone.model={model}", "backbone.length=24", "backbone.item_tokens=10"),
        *("dataset.n_users=14", "evaluation.every=1"),
    ]
    return list({text.partition("=")[0]: text for text in (*given, *more)}.values())


def tiny(style: Style, folder: Path, width: int = WIDTH, *, head: bool = False) -> Tiny:
    """A random model, saved in a folder: bidirectional, causal, or causal with two kinds of layers.

    Biases and norms, which start at nothing, are random too. With `head` it is a causal model that can write.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        BertConfig,
        Gemma3TextConfig,
        LlamaConfig,
        PretrainedConfig,
    )

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
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
        kind = AutoModelForCausalLM if head else AutoModel
        model: nn.Module = kind.from_config(config)  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)  # type: ignore[operator]
    save_tokenizer(folder)
    targets = ("query", "value") if style == "bert" else ("q_proj", "v_proj")
    return Tiny(folder, model.double().eval(), Lora(rank=2, alpha=4.0, targets=targets))
