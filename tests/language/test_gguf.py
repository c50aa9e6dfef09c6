"""A GGUF file becomes a model of the register: the same weights, and the same digest wherever it is rewritten."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from commands.models import add_model
from fedrec.core.errors import ConfigError, DataError
from fedrec.language.causal import read_causal
from fedrec.language.gguf import rewrite
from fedrec.language.models import folder_of, sizes_of
from fedrec.language.tokens import frame_of, token_table

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "Ċ", "ab", "<|end|>"]
"""A byte-level tokenizer's, whose end of a line is `Ċ`."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A random model of two layers as a GGUF file, and the model."""
    config = Qwen2Config(
        vocab_size=len(LETTERS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: nn.Module = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    file = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write(file, model)
    return file, model.eval()


def write(file: Path, model: nn.Module, blocks: int = 2, wide: int = 24, left_out: str | None = None) -> None:
    """Write a model as such a file, which may describe another one, or lack the tensors of some name."""
    made = GGUFWriter(file, "qwen2")
    made.add_context_length(64)
    made.add_embedding_length(16)
    made.add_block_count(blocks)
    made.add_feed_forward_length(wide)
    made.add_head_count(2)
    made.add_head_count_kv(1)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_rope_freq_base(10_000.0)
    made.add_vocab_size(len(LETTERS))
    made.add_tokenizer_model("gpt2")
    made.add_token_list(LETTERS)
    made.add_token_merges(["a b"])
    made.add_eos_token_id(len(LETTERS) - 1)
    for name, parameter in model.named_parameters():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if left_out is None or left_out not in name:
            made.add_tensor(name, parameter.detach().numpy())
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def test_a_file_becomes_a_model_of_the_register(
    written: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model = written
    found = []
    for home in ("one", "other"):
        monkeypatch.setenv("FEDREC_HOME", str(tmp_path / home))
        found.append(add_model(str(file), None))
    assert found[0]["digest"] == found[1]["digest"], "wherever it is rewritten"
    digest = found[1]["digest"]
    assert add_model(str(file), None) == found[1], "once"
    assert folder_of(digest).parent == tmp_path / "other" / "models"
    assert sorted(path.name for path in (tmp_path / "other" / "models").iterdir()) == sorted(
        [f"{digest}.json", folder_of(digest).name]
    )
    sizes = sizes_of(digest)
    assert (sizes.width, sizes.layers, sizes.positions, sizes.vocabulary) == (16, 2, 64, len(LETTERS))
    assert token_table(digest, ["cab\n"], 5).tolist() == [[2, 27, 26, -1, -1]]
    assert frame_of(digest).nothing == len(LETTERS) - 1
    read = read_causal(folder_of(digest), None, torch.float32, torch.device("cpu"))
    text = torch.tensor([3, 1, 26, 5, 6, 7])
    logits = model(input_ids=text[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[2:-1], text[3:])
    torch.testing.assert_close(read.surprise({}, text[:3], text[3:]), expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is no GGUF file"),
        (b"PK\x03\x04" + bytes(40), "it is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 1, 1), "version 9 with 1 tensors and 1 values; expected version 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "at most 100000 and 10000"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60), "at most 100000 and 10000"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1), "transformers can read no causal language model"),
    ],
)
def test_what_is_no_such_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.gguf"
    file.write_bytes(content)
    with pytest.raises(DataError, match=said):
        rewrite(file, tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_without_the_package_the_command_says_which(
    written: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match="needs the package gguf"):
        rewrite(written[0], tmp_path)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"left_out": "ffn_down"}, "it lacks 2 tensors of Qwen2ForCausalLM"),
        ({"blocks": 1_000_000}, "it describes 1000000 layers and has 27 tensors"),
        ({"wide": 2**20}, "it describes a model of 1[0-9]{2},[0-9]{3},[0-9]{3} numbers and has"),
    ],
)
def test_a_file_is_no_more_than_it_has(
    written: tuple[Path, nn.Module], told: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    file = tmp_path / "wrong.gguf"
    write(file, written[1], **told)
    with pytest.raises(DataError, match=said):
        add_model(str(file), None)
    assert list((tmp_path / "home" / "models").iterdir()) == [], "nothing is registered, and nothing left behind"


def test_a_name_of_a_file_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.GGUF: there is no such file"):
        add_model(str(tmp_path / "gone.GGUF"), None)
