"""A causal language model with LoRA: how likely it takes a text to go on so, what it writes, how it reads a text.

It is the model with its head as transformers has it, whatever its architecture. LoRA's tensors are arguments, as in
`fedrec.language.layers`. Each text goes through it alone and without padding.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from fedrec.core.errors import FedrecError
from fedrec.core.tensors import Tensors, TensorSpec
from fedrec.language.layers import lora_names, stack_of
from fedrec.language.loading import Lora, weight_files
from fedrec.language.models import PRECISIONS, Precision, folder_of

Pooling: TypeAlias = Literal["mean", "last"]
"""Of a text's last hidden states: their mean, or the last one."""


class Causal:
    """A causal language model on one device.

    Attributes:
        tensors: The LoRA tensors by their short names, those of `Layers`; none without LoRA. What is given for them,
            and texts, may be on any device.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take a model with its head, in which `peft` may have put LoRA. None of its own parameters gets a gradient."""
        self._model = model.eval().requires_grad_(False)
        self._base = cast(nn.Module, model.base_model)
        stack = stack_of(self._base)
        self._long = lora_names(model, f"{cast(str, model.base_model_prefix)}.{stack}")
        shapes = dict(model.named_parameters())
        self.tensors = {short: TensorSpec(tuple(shapes[name].shape)) for short, name in self._long.items()}
        self._device = next(model.parameters()).device

    def _run(self, tensors: Tensors, **given: Any) -> Any:
        dtype = next(self._model.parameters()).dtype
        swapped = {name: tensors[short].to(self._device, dtype) for short, name in self._long.items()}
        return functional_call(self._model, swapped, kwargs=given)

    def surprise(self, tensors: Tensors, prompt: Tensor, text: Tensor) -> Tensor:
        """The mean cross-entropy, in nats a token, of a text after a prompt.

        Args:
            tensors: LoRA by its short names; the gradient reaches it.
            prompt: int64 [tokens], at least one.
            text: int64 [tokens], at least one.
        """
        whole = torch.cat([prompt, text]).to(self._device)
        made = self._run(tensors, input_ids=whole[None, :-1], use_cache=False, logits_to_keep=len(text))
        logits: Tensor = made.logits[0]
        return cross_entropy(logits.to(torch.promote_types(torch.float32, logits.dtype)), whole[len(prompt) :])

    @torch.no_grad()
    def write(self, tensors: Tensors, prompt: Tensor, longest: int, end: int) -> Tensor:
        """The text after a prompt, each time the likeliest token, up to the token `end`; int64 [tokens].

        Args:
            tensors: As in `surprise`.
            prompt: As in `surprise`.
            longest: Tokens that are written, at most.
            end: It ends the text and is no part of it.
        """
        written, read, cache = list[int](), prompt.to(self._device), None
        for _ in range(longest):
            made = self._run(tensors, input_ids=read[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
            read, cache = made.logits[0, -1:].argmax(-1), made.past_key_values
            if int(read) == end:
                break
            written.append(int(read))
        return torch.tensor(written, dtype=torch.int64)

    @torch.no_grad()
    def vector(self, text: Tensor, pooling: Pooling) -> Tensor:
        """What the untrained model makes of a text, int64 [tokens], at least one: of length one [width]."""
        # The model's own LoRA is that of peft's start, whose products are zero: what is trained is never put in.
        hidden: Tensor = self._base(input_ids=text[None].to(self._device), use_cache=False).last_hidden_state[0]
        hidden = hidden.to(torch.promote_types(torch.float32, hidden.dtype))
        return normalize(hidden.mean(0) if pooling == "mean" else hidden[-1], dim=0)


def read_causal(folder: Path, lora: Lora | None, dtype: torch.dtype, device: torch.device) -> Causal:
    """Read a causal language model.

    Args:
        folder: With its `config.json` and its weights as safetensors.
        lora: What is put in; None: nothing. Its own tensors have no meaning: `Causal` takes them as arguments.
        dtype: Of the weights.
        device: Where they are.

    Raises FedrecError if the folder has no such model, or it lacks weights.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    weight_files(folder)
    given = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **given)
        model, found = cast("tuple[nn.Module, dict[str, set[str]]]", read)
    except Exception as error:  # the library raises whatever its many architectures raise
        reason = str(error).strip().split("\n")[0]
        raise FedrecError(f"{folder}: no causal language model can be read there: {reason}") from error
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if missing := sorted(found["missing_keys"]):
        raise FedrecError(f"{folder}: the weights lack {len(missing)} tensors of {type(model).__name__}: {missing[:3]}")
    if lora is not None:
        with torch.random.fork_rng(devices=[]):  # peft draws a start, which nobody reads
            lora.put_into(model)
    return Causal(model.to(device))


def fastest() -> torch.device:
    """CUDA where there is any, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=2)
def causal_model(digest: str, lora: Lora, precision: Precision) -> Causal:
    """A model of the register, on CUDA where there is any, read once per process.

    Raises as `folder_of` and `read_causal`.
    """
    return read_causal(folder_of(digest), lora, PRECISIONS[precision], fastest())


def problem_of(folder: Path) -> str | None:
    """Why the model in a folder cannot write, by its configuration; None: it can.

    Raises FedrecError if there is no configuration of a transformer.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FedrecError(f"{folder}: no configuration of a transformer can be read there: {error}") from None
    kind = str(config.model_type)
    # Of what reads in both directions as well, and no other, `is_decoder` says which it is.
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    both_ways = getattr(config, "use_bidirectional_attention", False) or encodes
    if both_ways or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"a model of the type {kind} reads a text in both directions, or has no head, and cannot write one"
    return None
