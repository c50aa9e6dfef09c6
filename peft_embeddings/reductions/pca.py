"""Principal component analysis: the linear reduction of least squared error, exact and free of chance.

Source: Hotelling (1933). Dense vectors go through the eigenvectors of their smaller Gram matrix, summed in float64 over
chunks of rows; sparse ones through implicitly restarted Lanczos iteration (ARPACK; Lehoucq, Sorensen and Yang, 1998),
centred on the fly. Either way neither a centred nor a dense copy of the vectors is ever made, so that memory beyond the
input grows with the output [items, dim] alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedrec.core.registry import MemberConfig, reductions
from fedrec.core.rng import counter_normal
from peft_embeddings.encoders.base import Arrays, Progress, TextVectors
from peft_embeddings.reductions.base import Reduced, Reduction, check_dim

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Float = NDArray[np.float64]

_CHUNK_NUMBERS = 8_000_000  # numbers of a dense float64 chunk: 64 MB
_SMALL = 512  # below this, a sparse matrix is as well treated as a dense one


class Principal(NamedTuple):
    """The first principal components of vectors [items, width].

    Attributes:
        mean: [width].
        components: Orthonormal rows [dim, width], of falling variance; each row's largest entry is positive.
        scores: `(vectors - mean) @ components.T`, [items, dim].
        mse: Mean squared error, per number, of `scores @ components + mean`.
    """

    mean: Float
    components: Float
    scores: Float
    mse: float


@dataclass(frozen=True)
class PcaConfig(MemberConfig):
    """PCA has nothing to choose."""

    name: Literal["pca"]


@reductions.register("pca")
class Pca(Reduction):
    """The scores of the first `dim` principal components; the same for every seed."""

    config_class = PcaConfig

    @override
    def reduce(self, vectors: TextVectors, dim: int, seed: int, progress: Progress) -> Reduced:
        found = principal_components(vectors, dim, progress)
        return Reduced(found.scores.astype(np.float32), found.mse, pca_learned(found))

    @override
    def reduce_new(self, vectors: TextVectors, learned: Arrays) -> NDArray[np.float32]:
        return _project(vectors, learned["mean"], learned["components"]).astype(np.float32)


def pca_learned(found: Principal) -> Arrays:
    """What `Pca.reduce_new` needs."""
    return {"mean": found.mean, "components": found.components}


def principal_components(vectors: TextVectors, dim: int, progress: Progress) -> Principal:
    """The first `dim` principal components of vectors [items, width]; DataError if there are not that many."""
    check_dim(vectors, dim)
    items, width = vectors.shape
    progress("principal components", 0, 1)
    mean, square = _moments(vectors)
    if not isinstance(vectors, np.ndarray) and min(items, width) > max(_SMALL, 4 * dim):
        components = _lanczos(vectors, mean, dim)
    elif items < width:
        components = _svd(vectors, mean, dim)
    else:
        components = _eigen(vectors, mean, dim)
    # A component's sign is free: its largest entry decides, so that no library's habit does.
    largest = components[np.arange(dim), np.abs(components).argmax(axis=1)]
    components = components * np.where(largest < 0, -1.0, 1.0)[:, None]
    scores = _project(vectors, mean, components)
    progress("principal components", 1, 1)
    mse = max(square - float(np.square(scores).sum()), 0.0) / (items * width)
    return Principal(mean, components, scores, mse)


def dense_rows(vectors: TextVectors, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    """Some rows as a dense array."""
    chosen = vectors[rows]
    dense: NDArray[np.float32] = chosen if isinstance(chosen, np.ndarray) else chosen.toarray()
    return dense


def _chunks(vectors: TextVectors) -> Iterator[tuple[slice, Float]]:
    """The rows of dense vectors, a bounded number at a time, in float64."""
    items, width = vectors.shape
    step = max(1, _CHUNK_NUMBERS // width)
    for start in range(0, items, step):
        rows = slice(start, min(start + step, items))
        yield rows, dense_rows(vectors, rows).astype(np.float64)


def _moments(vectors: TextVectors) -> tuple[Float, float]:
    """The mean [width], and the sum of squares of the centred vectors."""
    items, width = vectors.shape
    if not isinstance(vectors, np.ndarray):
        mean: Float = vectors.T @ np.ones(items) / items
        return mean, float(np.square(vectors.data, dtype=np.float64).sum()) - items * float(mean @ mean)
    mean = np.zeros(width)
    for _, chunk in _chunks(vectors):
        mean += chunk.sum(axis=0) / items
    return mean, sum(float(np.square(chunk - mean).sum()) for _, chunk in _chunks(vectors))


def _project(vectors: TextVectors, mean: Float, components: Float) -> Float:
    """Centred vectors times the components, [items, dim]."""
    if not isinstance(vectors, np.ndarray):
        projected: Float = vectors @ components.T - mean @ components.T
        return projected
    scores = np.empty((vectors.shape[0], len(components)))
    for rows, chunk in _chunks(vectors):
        scores[rows] = (chunk - mean) @ components.T
    return scores


def _svd(vectors: TextVectors, mean: Float, dim: int) -> Float:
    """Components of fewer vectors than their width: the singular value decomposition of what is small by then."""
    centred = dense_rows(vectors, slice(None)).astype(np.float64) - mean
    components: Float = np.linalg.svd(centred, full_matrices=False)[2][:dim]
    return components


def _eigen(vectors: TextVectors, mean: Float, dim: int) -> Float:
    """Components as eigenvectors of the scatter matrix [width, width]."""
    from scipy.linalg import eigh

    items, width = vectors.shape
    if not isinstance(vectors, np.ndarray):
        double = vectors.astype(np.float64)
        scatter = (double.T @ double).toarray() - items * np.outer(mean, mean)
    else:
        scatter = np.zeros((width, width))
        for _, chunk in _chunks(vectors):
            chunk -= mean
            scatter += chunk.T @ chunk
    components: Float = eigh(scatter, subset_by_index=(width - dim, width - 1))[1].T[::-1]
    return components


def _lanczos(vectors: csr_array, mean: Float, dim: int) -> Float:
    """Components as eigenvectors of the scatter matrix, which is never formed: only multiplied with vectors."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    width = vectors.shape[1]
    double = vectors.astype(np.float64)
    turned = double.T.tocsr()

    def times(direction: Float) -> Float:
        image = double @ direction - mean @ direction
        product: Float = turned @ image - mean * image.sum()
        return product

    operator = LinearOperator((width, width), matvec=times, dtype=np.float64)
    start = counter_normal(0, np.arange(width))
    values, found = eigsh(operator, k=dim, which="LA", v0=start, rng=np.random.default_rng(0))
    components: Float = found.T[np.argsort(values)[::-1]]
    return components
