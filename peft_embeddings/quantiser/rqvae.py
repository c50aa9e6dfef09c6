"""An RQ-VAE over item vectors: an autoencoder whose latents are quantised to codes, started as residual k-means.

Source: Lee et al. (CVPR 2022), as FedPEFT (arXiv 2512.13734) uses it. With z = E(x), r_1 = z, o_j the row of codebook j
nearest to r_j, and r_{j+1} = r_j - o_j, an item's loss is

    |x - D(o_1 + ... + o_l)|^2 + sum_j (|sg[r_j] - o_j|^2 + beta |r_j - sg[o_j]|^2),

with the gradient at the sum of the o_j handed on to z as it is (straight through; sg stops a gradient). E and D are
`x + f(x)`, latents as wide as the vectors, f a ReLU network whose last layer starts at zero. So the start is residual
k-means of the vectors themselves, training goes on from there, and the state of least reconstruction error is kept:
never worse than k-means. Codes that no item takes are moved to what random items have left over (dead-code revival).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedrec.core.tensors import Spec, Tensors, TensorSpec
from peft_embeddings.quantiser.kmeans import nearest
from peft_embeddings.quantiser.residual import decode, encode, residual_kmeans
from peft_embeddings.reductions.autoencoder import Layers, run

_CHECKS = 10  # times in a training that the error over all vectors is looked at
_EXACT = 1e-9  # share of the mean square below which an error is rounding
_REVIVED = 0.75  # share of the steps after which codes are left where they are
_LEAST_BETWEEN = 20  # steps between two revivals, at least: a code needs some to find its place
_ROWS_AT_ONCE = 8_192
_PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Training:
    """How an RQ-VAE is trained.

    Attributes:
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        steps: Steps of Adam (0: residual k-means).
        batch_size: Vectors in a step.
        lr: Peak learning rate; it falls to zero along a cosine.
        commitment: The factor beta.
    """

    hidden: Sequence[int]
    steps: int
    batch_size: int
    lr: float
    commitment: float


@dataclass(frozen=True)
class Coder:
    """What of a trained RQ-VAE gives vectors their codes.

    Attributes:
        scale: Vectors are divided by it before they are encoded.
        encoder: Layers of the encoder's f.
        codebooks: [levels, size, dim], over latents.
    """

    scale: float
    encoder: Layers
    codebooks: Tensor

    @torch.no_grad()
    def codes(self, vectors: Tensor) -> Tensor:
        """Codes int64 [n, levels] of vectors [n, dim]; also of vectors that it was not trained on."""
        parts = torch.split(vectors / self.scale, _ROWS_AT_ONCE)
        return torch.cat([encode(_skip(self.encoder, part), self.codebooks) for part in parts])

    def tensors(self) -> Tensors:
        """All of it as named tensors."""
        layers = {
            f"encoder.{number}.{part}": tensor
            for number, layer in enumerate(self.encoder)
            for part, tensor in zip(_PARTS, layer, strict=True)
        }
        return {"scale": torch.tensor(self.scale, dtype=torch.float64), "codebooks": self.codebooks, **layers}

    @staticmethod
    def of(tensors: Tensors) -> Coder:
        """The coder whose `tensors` these are."""
        count = (len(tensors) - 2) // len(_PARTS)
        weights, biases = ([tensors[f"encoder.{number}.{part}"] for number in range(count)] for part in _PARTS)
        return Coder(float(tensors["scale"]), list(zip(weights, biases, strict=True)), tensors["codebooks"])

    @staticmethod
    def spec(levels: int, size: int, dim: int, hidden: Sequence[int]) -> Spec:
        """The specification of `tensors`."""
        widths = [dim, *hidden, dim]
        layers: dict[str, TensorSpec] = {}
        for number, (into, out) in enumerate(pairwise(widths)):
            shapes = ((out, into), (out,))
            layers |= {f"encoder.{number}.{part}": TensorSpec(s) for part, s in zip(_PARTS, shapes, strict=True)}
        return {"scale": TensorSpec((), "float64"), "codebooks": TensorSpec((levels, size, dim)), **layers}


@dataclass(frozen=True)
class Quantiser(Coder):
    """A trained RQ-VAE.

    Attributes:
        decoder: Layers of the decoder's f.
    """

    decoder: Layers

    @torch.no_grad()
    def reconstruct(self, codes: Tensor) -> Tensor:
        """The vectors [n, dim] that codes [n, levels] stand for."""
        return _skip(self.decoder, decode(codes, self.codebooks)) * self.scale

    def error(self, vectors: Tensor) -> float:
        """Mean squared error, per number, of the vectors rebuilt from their codes."""
        total = 0.0
        for part in torch.split(vectors, _ROWS_AT_ONCE):
            total += float((self.reconstruct(self.codes(part)) - part).square().sum(dtype=torch.float64))
        return total / vectors.numel()

    def copy(self) -> Quantiser:
        """The same numbers in tensors of their own, without gradients."""
        encoder, decoder = (
            [(weight.detach().clone(), bias.detach().clone()) for weight, bias in layers]
            for layers in (self.encoder, self.decoder)
        )
        return Quantiser(self.scale, encoder, self.codebooks.detach().clone(), decoder)


def train_quantiser(vectors: Tensor, levels: int, size: int, training: Training, rng: torch.Generator) -> Quantiser:
    """An RQ-VAE with `levels` codebooks of `size` rows for vectors [n, dim], n > 0; a function of them and `rng`."""
    scale = math.sqrt(float(vectors.square().mean(dtype=torch.float64))) or 1.0
    inputs = vectors / scale
    dim = vectors.shape[1]
    codebooks = residual_kmeans(inputs, levels, size, rng)
    encoder = _zero_ended([dim, *training.hidden, dim], rng)
    decoder = _zero_ended([dim, *reversed(training.hidden), dim], rng)
    net = Quantiser(scale, encoder, codebooks, decoder)
    best, least = net.copy(), net.error(vectors)
    if least <= _EXACT * scale**2:
        return best
    for step in _train(net, inputs, training, rng):
        if step % max(1, training.steps // _CHECKS) == 0 or step == training.steps:
            error = net.error(vectors)
            if error < least:
                best, least = net.copy(), error
    return best


def _train(net: Quantiser, inputs: Tensor, training: Training, rng: torch.Generator) -> Iterator[int]:
    """Take the steps, changing `net` in place; yields the number of each."""
    layers = [tensor for layer in net.encoder + net.decoder for tensor in layer]
    optimiser = torch.optim.Adam([tensor.requires_grad_() for tensor in [*layers, net.codebooks]], lr=training.lr)
    size = net.codebooks.shape[1]
    taken = torch.zeros(net.codebooks.shape[:2], dtype=torch.int64)
    between = max(_LEAST_BETWEEN, math.ceil(len(inputs) / training.batch_size))
    batches = _batches(len(inputs), training.batch_size, rng)
    for step in range(1, training.steps + 1):
        optimiser.param_groups[0]["lr"] = training.lr * 0.5 * (1 + math.cos(math.pi * step / training.steps))
        batch = inputs[next(batches)]
        latents = _skip(net.encoder, batch)
        loss, quantised, codes, left = _quantise(latents, net.codebooks, training.commitment)
        straight = latents + (quantised - latents).detach()
        loss = loss + (_skip(net.decoder, straight) - batch).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        taken += torch.stack([torch.bincount(of_level, minlength=size) for of_level in codes])
        if step % between == 0:
            if step <= _REVIVED * training.steps:
                _revive(net.codebooks, taken == 0, left, optimiser, rng)
            taken.zero_()
        yield step


def _quantise(
    latents: Tensor, codebooks: Tensor, commitment: float
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The codebooks' loss, the quantised latents [n, dim], and for each level codes [n] and residuals [n, dim]."""
    loss, quantised, left = latents.new_zeros(()), torch.zeros_like(latents), latents
    codes, residuals = [], []
    for codebook in codebooks:
        codes.append(nearest(left.detach(), codebook.detach()))
        residuals.append(left.detach())
        row = codebook.index_select(0, codes[-1])
        loss = loss + (left.detach() - row).square().sum(1).mean()
        loss = loss + commitment * (left - row.detach()).square().sum(1).mean()
        quantised = quantised + row.detach()
        left = left - row.detach()
    return loss, quantised, codes, residuals


@torch.no_grad()
def _revive(
    codebooks: Tensor, dead: Tensor, left: list[Tensor], optimiser: torch.optim.Optimizer, rng: torch.Generator
) -> None:
    """Move the rows `dead` [levels, size] to what random items of the batch have left over, without momentum."""
    for codebook, rows, residuals in zip(codebooks, dead, left, strict=True):
        drawn = torch.randint(len(residuals), (int(rows.sum()),), generator=rng)
        codebook[rows] = residuals[drawn]
    state = optimiser.state[codebooks]
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        moment[dead] = 0


def _batches(items: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Rows of the next batch, without end: all items in a random order, again and again."""
    while True:
        yield from torch.split(torch.randperm(items, generator=rng), size)


def _zero_ended(widths: Sequence[int], rng: torch.Generator) -> Layers:
    """Layers of a network that is zero everywhere: He et al.'s start (2015) up to the last layer, which is zero."""
    weights = [torch.randn(out, into, generator=rng) * math.sqrt(2 / into) for into, out in pairwise(widths)]
    weights[-1].zero_()
    return [(weight, torch.zeros(len(weight))) for weight in weights]


def _skip(layers: Layers, inputs: Tensor) -> Tensor:
    return inputs + run(layers, inputs)
