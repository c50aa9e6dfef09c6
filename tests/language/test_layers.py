"""The parts of a transformer one after another are the transformer, to the bit, forwards and backwards."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedrec.core.errors import FedrecError
from fedrec.core.tensors import Tensors
from fedrec.language.layers import PARTS, Layers, Part
from fedrec.language.loading import Lora, loaded, outline
from fedrec.testing.language import VOCABULARY, WIDTH, Tiny


def texts() -> tuple[Tensor, Tensor]:
    """Three texts of seven tokens, one of which ends early, and where their tokens are."""
    rng = torch.Generator().manual_seed(2)
    tokens, mask = torch.randint(1, VOCABULARY, (3, 7), generator=rng), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    return tokens, mask


def corrections(layers: Layers) -> Tensors:
    """LoRA tensors none of which is zero."""
    rng = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(entry.shape, generator=rng, dtype=torch.float64) / 3 for name, entry in layers.tensors.items()
    }


def own_forward(tiny: Tiny, tensors: Tensors, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensors]:
    """The last hidden states of the model itself with these LoRA tensors put in, and the gradients of a sum of them."""
    model = copy.deepcopy(tiny.model)
    tiny.lora.put_into(model)
    parameters = {
        re.sub(r".*layers?\.(\d+)\.(.*)\.lora_(.)\.default\.weight", r"layer.\1.\2.\3", name): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    assert parameters.keys() == tensors.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    hidden = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    return hidden.detach(), gradients(hidden, dict(parameters), weights(hidden))


def weights(hidden: Tensor) -> Tensor:
    """What the sum that is differentiated weighs hidden states with."""
    return torch.randn(hidden.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def gradients(output: Tensor, inputs: Tensors, given: Tensor) -> Tensors:
    """Of each input; `given`: that of the output."""
    return dict(zip(inputs, torch.autograd.grad(output, list(inputs.values()), given) if inputs else (), strict=True))


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_the_parts_are_the_model(tiny_model: Tiny, first: int) -> None:
    layers, (tokens, mask) = loaded(tiny_model.folder, tiny_model.lora, first, dtype=torch.float64), texts()
    tensors = corrections(layers)
    expected, wanted = own_forward(tiny_model, tensors, tokens, mask)
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    hidden = layers.whole(tensors, tokens, mask)
    assert torch.equal(hidden, expected)
    for name, gradient in gradients(hidden, tensors, weights(hidden)).items():
        assert torch.equal(gradient, wanted[name]), name
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("first", [0, 1, 2])
def test_gradients_go_through_the_boundaries(tiny_model: Tiny, first: int) -> None:
    """Each part by itself, on the machine that holds it: what crosses a boundary is cut off from what made it."""
    client = loaded(tiny_model.folder, tiny_model.lora, first, ("bottom", "top"), torch.float64)
    server = loaded(tiny_model.folder, tiny_model.lora, first, ("middle",), torch.float64)
    whole, (tokens, mask) = loaded(tiny_model.folder, tiny_model.lora, first, dtype=torch.float64), texts()
    tensors = {name: tensor.requires_grad_() for name, tensor in corrections(whole).items()}
    hidden = whole.whole(tensors, tokens, mask)
    wanted = gradients(hidden, tensors, weights(hidden))

    def of(part: Part) -> Tensors:
        return {name: tensors[name] for name in whole.names(part)}

    assert sorted(name for part in PARTS for name in of(part)) == sorted(tensors)
    low = client.bottom(of("bottom"), tokens, mask)
    low_there = low.detach().requires_grad_()
    high = server.middle(of("middle"), low_there, mask)
    high_here = high.detach().requires_grad_()
    last = client.top(of("top"), high_here, mask)
    assert torch.equal(last, hidden)
    found = gradients(last, {**of("top"), "high": high_here}, weights(last))
    found |= gradients(high, {**of("middle"), "low": low_there}, found.pop("high"))
    found |= gradients(low, of("bottom"), found.pop("low"))
    assert found.keys() == tensors.keys()
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


def test_a_machine_holds_only_its_parts(tiny_model: Tiny) -> None:
    """The weights of a model are on one of the two sides, each of them on one, and none that is not needed."""
    whole = sum(parameter.numel() for parameter in tiny_model.model.parameters())
    pooler = sum(value.numel() for name, value in tiny_model.model.named_parameters() if name.startswith("pooler."))
    client = loaded(tiny_model.folder, tiny_model.lora, 1, ("bottom", "top"))
    server = loaded(tiny_model.folder, tiny_model.lora, 1, ("middle",))
    assert client.weights() + server.weights() == whole - pooler
    assert 0 < server.weights() < client.weights()
    assert not any(name.startswith(("layer.1.", "layer.2.")) for name in client.tensors)
    assert {int(name.split(".")[1]) for name in server.tensors} == {1, 2}


def test_names_and_shapes_need_no_weights(tiny_model: Tiny) -> None:
    from transformers import AutoConfig

    known = outline(AutoConfig.from_pretrained(tiny_model.folder), tiny_model.lora, 1)
    assert known.tensors == loaded(tiny_model.folder, tiny_model.lora, 1).tensors
    assert (known.width, known.count) == (WIDTH, 4)
    assert known.weights() == 0


def test_what_cannot_be_cut_is_refused(tiny_model: Tiny) -> None:
    with pytest.raises(FedrecError, match="has 4 layers, the last of which is its top: 4 first layers are not"):
        loaded(tiny_model.folder, tiny_model.lora, 4)
    with pytest.raises(FedrecError, match="Linear cannot be cut into parts: its layers are neither at layers nor at"):
        Layers(nn.Linear(2, 2), 0)
    with pytest.raises(FedrecError, match=r"has no modules called \['unheard'\]; it has \["):
        loaded(tiny_model.folder, Lora(2, 4.0, ("unheard",)), 1)


def test_a_folder_without_its_weights_is_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(FedrecError, match="no configuration of a transformer can be read there"):
        loaded(tmp_path, tiny_model.lora, 1)
    shutil.copy(tiny_model.folder / "config.json", tmp_path)
    with pytest.raises(FedrecError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json is there"):
        loaded(tmp_path, tiny_model.lora, 1)
    weights = load_file(tiny_model.folder / "model.safetensors")
    name = min(name for name in weights if ".0." in name)
    save_file({other: value for other, value in weights.items() if other != name}, tmp_path / "model.safetensors")
    with pytest.raises(FedrecError, match=f"the weights lack 1 tensors of .*: .*{name.split('.')[-2]}"):
        loaded(tmp_path, tiny_model.lora, 1)
    save_file({**weights, name: weights[name][:3]}, tmp_path / "model.safetensors")
    with pytest.raises(FedrecError, match=r" is \(3.*\), expected \("):
        loaded(tmp_path, tiny_model.lora, 1)
