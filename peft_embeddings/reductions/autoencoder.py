"""The paper's autoencoder, started as PCA and only ever improved.

Source: FedPEFT (arXiv 2512.13734): 768-512-256-128-32 and its mirror, ReLU, mean squared reconstruction error; the
latents are the base table. The width is that of the input as it comes.

ReLU layers can carry a linear map exactly, because `relu(x) - relu(-x) = x`. So the first `2 dim` units of each hidden
layer start as `+z` and `-z` of the `dim` principal scores z and hand them on, and the network starts as the best linear
reduction there is (at d = 32: 64 of at least 128 units). All other units start at random (He et al., 2015) with
nothing flowing from them into latents or output yet, but with a gradient: they are the capacity that training adds.
A random start needs hundreds of epochs to come as far as PCA, and a weight penalty of 1e-2, as in published code,
makes the latents collapse to a constant; here the state of least error is kept, which PCA's own bounds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MinLen
from numpy.typing import NDArray
from pydantic import Strict
from torch import Tensor
from torch.nn.functional import linear, relu
from typing_extensions import override

from fedrec.core.errors import ConfigError
from fedrec.core.registry import MemberConfig, reductions
from fedrec.core.rng import generator
from peft_embeddings.encoders.base import Arrays, Progress, TextVectors
from peft_embeddings.reductions.base import Reduced, Reduction
from peft_embeddings.reductions.pca import Pca, PcaConfig, Principal, dense_rows, pca_learned, principal_components

_LOG = logging.getLogger(__name__)

Layers: TypeAlias = list[tuple[Tensor, Tensor]]
"""Weight [out, in] and bias [out] of each layer; ReLU after all but the last."""

_CHUNK = 4096  # rows that are evaluated together
_EXACT = 1e-9  # share of the mean square below which an error is rounding
_WARM_UP = 0.05  # share of the steps in which the rate rises: Adam's first, sign-like steps would undo the start


@dataclass(frozen=True)
class AutoencoderConfig(MemberConfig):
    """Configuration of `autoencoder`.

    Attributes:
        hidden: Widths of the encoder's hidden layers, the decoder's in reverse; each at least twice `base_table.dim`.
        epochs: Passes over the items (0: the start, which is PCA).
        batch_size: Items in a step.
        lr: Peak learning rate of Adam: it rises over the first steps, then falls to zero along a cosine.
        weight_decay: Adam's weight penalty.
    """

    name: Literal["autoencoder"]
    hidden: Annotated[tuple[Annotated[int, Ge(1), Le(65_536)], ...], Strict(False), MinLen(1)]
    epochs: Annotated[int, Ge(0), Le(1_000_000)]
    batch_size: Annotated[int, Ge(1), Le(10_000_000)]
    lr: Annotated[float, Gt(0), Le(1e6)]
    weight_decay: Annotated[float, Ge(0), Le(1e6)]


@reductions.register("autoencoder")
class Autoencoder(Reduction):
    """Latents of an autoencoder whose reconstruction error is never above PCA's."""

    config_class = AutoencoderConfig
    config: AutoencoderConfig

    @override
    def reduce(self, vectors: TextVectors, dim: int, seed: int, progress: Progress) -> Reduced:
        if min(self.config.hidden) < 2 * dim:
            raise ConfigError(
                [
                    f"reduction.hidden={list(self.config.hidden)}: every hidden layer needs at least "
                    f"2 * base_table.dim = {2 * dim} units, to start as PCA; widen it or set base_table.dim to "
                    f"{min(self.config.hidden) // 2} or less"
                ]
            )
        pca = principal_components(vectors, dim, progress)
        data = _Scaled.of(vectors, pca)
        rng = generator(seed, "autoencoder")
        net = linear_start(pca, self.config.hidden, rng)
        best, mse = self._train(net, data, pca.mse, rng, progress)
        if best is None:
            if self.config.epochs and pca.mse > _EXACT * data.scale**2:
                _LOG.warning(
                    "the autoencoder did not get below PCA's reconstruction error %.3g, so PCA's vectors are used; "
                    "a lower reduction.lr than %g may help",
                    pca.mse,
                    self.config.lr,
                )
            return Reduced(pca.scores.astype(np.float32), pca.mse, pca_learned(pca))
        return Reduced(data.latents(best.encoder), mse, _learned(best.encoder, data))

    @override
    def reduce_new(self, vectors: TextVectors, learned: Arrays) -> NDArray[np.float32]:
        if "components" in learned:  # it was PCA that came out best
            return Pca(PcaConfig("pca")).reduce_new(vectors, learned)
        tensors = {name: torch.from_numpy(array) for name, array in learned.items()}
        layers = [(tensors[f"weight_{n}"], tensors[f"bias_{n}"]) for n in range(len(self.config.hidden) + 1)]
        return _Scaled(vectors, tensors["mean"], float(learned["scale"][0])).latents(layers)

    def _train(
        self, net: Net, data: _Scaled, least: float, rng: torch.Generator, progress: Progress
    ) -> tuple[Net | None, float]:
        """The network of least error among the ends of all epochs, and that error; (None, `least`) if none is lower."""
        config = self.config
        parameters = [tensor.requires_grad_() for layer in net.encoder + net.decoder for tensor in layer]
        optimiser = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
        steps = config.epochs * math.ceil(data.items / config.batch_size)
        best = None
        step = 0
        for epoch in range(config.epochs):
            order = torch.randperm(data.items, generator=rng)
            for first in range(0, data.items, config.batch_size):
                step += 1
                rise = min(1.0, step / (_WARM_UP * steps))
                optimiser.param_groups[0]["lr"] = config.lr * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
                batch = data.rows(order[first : first + config.batch_size])
                loss = (run(net.decoder, run(net.encoder, batch)) - batch).square().mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            mse = net.mse(data)
            if mse < least:
                best, least = net.copy(), mse
            progress("autoencoder", epoch + 1, config.epochs)
        return best, least


class _Scaled:
    """The vectors as the network sees them: centred, of unit mean square, so that one rate fits vectors of any size."""

    def __init__(self, vectors: TextVectors, mean: Tensor, scale: float) -> None:
        self.vectors = vectors
        self.items, self.width = vectors.shape
        self.mean = mean
        self.scale = scale

    @staticmethod
    def of(vectors: TextVectors, pca: Principal) -> _Scaled:
        """The vectors whose principal components are known: from these follow mean and scale."""
        square = pca.mse + float(np.square(pca.scores).sum()) / math.prod(vectors.shape)
        return _Scaled(vectors, torch.from_numpy(pca.mean.astype(np.float32)), math.sqrt(square) or 1.0)

    def rows(self, rows: slice | Tensor) -> Tensor:
        """Scaled vectors of some items."""
        chosen = dense_rows(self.vectors, rows if isinstance(rows, slice) else rows.numpy())
        return (torch.from_numpy(chosen) - self.mean) / self.scale

    def chunks(self) -> Iterator[Tensor]:
        """All items in order, a bounded number at a time."""
        for first in range(0, self.items, _CHUNK):
            yield self.rows(slice(first, first + _CHUNK))

    @torch.no_grad()
    def latents(self, encoder: Layers) -> NDArray[np.float32]:
        """Latents [items, dim] of all items, in the vectors' own scale."""
        latents = torch.cat([run(encoder, batch) for batch in self.chunks()])
        return np.asarray(latents.numpy() * self.scale, dtype=np.float32)


@dataclass(frozen=True)
class Net:
    """Encoder [width, *hidden, dim] and decoder [dim, *reversed hidden, width]."""

    encoder: Layers
    decoder: Layers

    def copy(self) -> Net:
        """The same numbers in tensors of their own."""
        return Net(_copy(self.encoder), _copy(self.decoder))

    @torch.no_grad()
    def mse(self, data: _Scaled) -> float:
        """Mean squared reconstruction error per number, in the vectors' own scale."""
        total = 0.0
        for inputs in data.chunks():
            errors = run(self.decoder, run(self.encoder, inputs)) - inputs
            total += float(errors.square().sum(dtype=torch.float64))
        mse: float = total * data.scale**2 / (data.items * data.width)
        return mse


def _learned(encoder: Layers, data: _Scaled) -> Arrays:
    arrays: dict[str, NDArray[Any]] = {"mean": data.mean.numpy(), "scale": np.array([data.scale])}
    for number, (weight, bias) in enumerate(encoder):
        arrays |= {f"weight_{number}": weight.numpy(), f"bias_{number}": bias.numpy()}
    return arrays


def _copy(layers: Layers) -> Layers:
    return [(weight.detach().clone(), bias.detach().clone()) for weight, bias in layers]


def run(layers: Layers, inputs: Tensor) -> Tensor:
    """Apply layers to inputs [..., in], with ReLU between them."""
    *hidden, (weight, bias) = layers
    for inner, inner_bias in hidden:
        inputs = relu(linear(inputs, inner, inner_bias))
    return linear(inputs, weight, bias)


def linear_start(pca: Principal, hidden: Sequence[int], rng: torch.Generator) -> Net:
    """A network over centred vectors that computes exactly the principal scores and the reconstruction from them."""
    components = torch.from_numpy(pca.components.astype(np.float32))
    identity = torch.eye(len(components))
    encoder = _carry(components, hidden, identity, rng)
    decoder = _carry(identity, list(reversed(hidden)), components.T, rng)
    return Net(encoder, decoder)


def _carry(first: Tensor, hidden: Sequence[int], last: Tensor, rng: torch.Generator) -> Layers:
    """Layers [in, *hidden, out] that compute `last @ first @ x` through pairs of units (+z, -z), with z = first @ x."""
    dim, width = first.shape
    pairs = 2 * dim

    def random(out: int, into: int) -> Tensor:
        return torch.randn(out, into, generator=rng) * math.sqrt(2 / into)

    opening = random(hidden[0], width)
    opening[:pairs] = torch.cat([first, -first])
    weights = [opening]
    for into, out in pairwise(hidden):
        inner = random(out, into)
        inner[:pairs] = 0
        inner[:pairs, :pairs] = torch.eye(pairs)
        weights.append(inner)
    closing = torch.zeros(len(last), hidden[-1])
    closing[:, :pairs] = torch.cat([last, -last], dim=1)
    weights.append(closing)
    return [(weight, torch.zeros(len(weight))) for weight in weights]
