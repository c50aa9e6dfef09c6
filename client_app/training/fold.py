"""From the users' local training to the node's update: who is taken, and the weighted sum of their deltas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.training.added_rows import added_rows
from client_app.training.copies import Deltas
from client_app.training.engine import GlobalModel, Limits, all_finite, codec_seeds
from client_app.training.local_training import LocalTraining
from fedrec.codecs.rounding import RoundingCodec, tensor_seed
from fedrec.core.rng import derive
from fedrec.core.tensors import TensorSpec
from fedrec.privacy.base import PrivacyMechanism, RowAdding
from fedrec.wire.updates import NodeUpdate, user_weights


def fold_at_once(
    training: LocalTraining,
    model: GlobalModel,
    update: NodeUpdate,
    limits: Limits,
    privacy: PrivacyMechanism,
    codec: RoundingCodec | None,
    seed: int,
) -> Tensor:
    """Add all users' weighted deltas to the node's update; who was taken (bool [users]), the others are counted.

    It serves mechanisms that change nothing, and those that add rows.
    """
    users = len(training.cohort)
    rows = training.deltas()
    if isinstance(privacy, RowAdding):
        own_seeds = [derive(seed, "privacy", int(key)) for key in training.cohort.keys]
        rows = {
            name: [*own, added_rows(privacy, name, model.trainable[name], own, own_seeds)] for name, own in rows.items()
        }
    whole = {name: tensor - model.trainable[name] for name, tensor in training.whole.items()}
    if codec is not None:
        seeds = codec_seeds(seed, training.cohort.keys)
        for name, blocks in rows.items():
            _round_rows(codec, model.model.trainable[name], blocks, tensor_seed(seeds, name))
        whole = {name: _round_whole(codec, delta, tensor_seed(seeds, name)) for name, delta in whole.items()}
    squared = torch.zeros(users, dtype=torch.float64, device=training.loss.device)
    for blocks in rows.values():
        for block in blocks:
            flat = block.values.flatten(1)
            squared.index_add_(0, block.owner, torch.linalg.vecdot(flat, flat).double())
    for delta in whole.values():
        squared += delta.reshape(users, -1).double().square().sum(1)
    finite = squared.isfinite() & training.loss.isfinite() & all_finite(training.private, users).to(squared.device)
    good = finite & (squared <= limits.max_update_norm**2)
    update.dropped["non_finite"] += int((~finite).sum())
    update.dropped["too_large"] += int((finite & ~good).sum())
    lengths = training.cohort.lengths
    weight = torch.from_numpy(user_weights(lengths, limits.weight_cap)).to(good.device) * good
    for name, blocks in rows.items():
        for block in blocks:
            if not good.all():  # what was dropped may be NaN, and zero times NaN is not zero
                block.values[~good[block.owner]] = 0
            block.values.mul_(weight[block.owner, None, None].to(block.values.dtype))
            update.total[name].index_add_(0, block.rows.flatten(), block.values.flatten(0, 1))
    for name, delta in whole.items():
        update.total[name] += torch.tensordot(weight[good].to(delta.dtype), delta[good], dims=1)
    update.weight += float(weight.sum())
    update.users += int(good.sum())
    update.examples += int(lengths[good.cpu().numpy()].sum())
    update.loss += float((weight[good] * training.loss[good].double()).sum())
    return good


def fold_one_by_one(
    training: LocalTraining,
    model: GlobalModel,
    update: NodeUpdate,
    limits: Limits,
    privacy: PrivacyMechanism,
    codec: RoundingCodec | None,
    seed: int,
) -> Tensor:
    """The same as the oracle does it: a mechanism may change every number of a delta, so each is formed whole."""
    good = torch.zeros(len(training.cohort), dtype=torch.bool)
    sane = all_finite(training.private, len(training.cohort))
    rows, spec = training.deltas(), model.model.trainable
    for user, key in enumerate(training.cohort.keys):
        delta = {name: tensor[user] - model.trainable[name] for name, tensor in training.whole.items()}
        for name, blocks in rows.items():
            delta[name] = torch.zeros_like(model.trainable[name])
            for block in blocks:
                mine = block.owner == user
                delta[name].index_add_(0, block.rows[mine].flatten(), block.values[mine].flatten(0, 1))
        delta = privacy.protect_update(delta, spec, derive(seed, "privacy", int(key)))
        if codec is not None:
            packed = codec.encode(delta, spec, int(codec_seeds(seed, training.cohort.keys[user : user + 1])[0]))
            delta = codec.decode(memoryview(packed), spec)
        loss = float(training.loss[user]) if sane[user] else math.nan
        examples = int(training.cohort.lengths[user])
        good[user] = update.add(delta, examples, loss, limits.weight_cap, limits.max_update_norm)
    return good


def _round_rows(codec: RoundingCodec, spec: TensorSpec, blocks: Sequence[Deltas], seeds: NDArray[np.uint64]) -> None:
    """Round what users changed in rows of a table as each user's own packet of the table would; in place."""
    largest = torch.zeros(len(seeds), dtype=blocks[0].values.dtype, device=blocks[0].values.device)
    for block in blocks:
        largest.scatter_reduce_(0, block.owner, block.values.flatten(1).abs().amax(1), "amax")
    for block in blocks:
        width = block.values.shape[2]
        places = block.rows[..., None] * width + torch.arange(width, device=block.rows.device)
        scale = block.values.abs().amax(2, keepdim=True)
        if not codec.by_row(spec):
            scale = largest[block.owner, None, None]
        block.values.copy_(codec.rounded(block.values, scale, seeds[block.owner.cpu().numpy()], places))


def _round_whole(codec: RoundingCodec, delta: Tensor, seeds: NDArray[np.uint64]) -> Tensor:
    """The same for tensors [users, ...] that are no tables."""
    flat = delta.reshape(len(delta), -1)
    places = torch.arange(flat.shape[1], device=flat.device)[None, :]
    return codec.rounded(flat, flat.abs().amax(1, keepdim=True), seeds, places).reshape(delta.shape)
