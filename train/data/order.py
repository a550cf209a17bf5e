"""The order of an epoch and the source of every draw: pure functions of the seed. numpy only.

Neither the number of workers nor that of processes changes what is drawn or which samples make a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DataError


def random_source(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Returns the generator of the draws that belong to (seed, epoch, key).

    Args:
        seed: of the run.
        epoch: counted from 0 within its stage.
        key: a sample's key, or the name of something else that is drawn once per epoch.
    """
    digest = hashlib.sha256(f"{seed}\0{epoch}\0{key}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def epoch_windows(
    labels: Sequence[int] | NDArray[Any], *, batch: int, seed: int, epoch: int, balance: str
) -> list[NDArray[np.int64]]:
    """Returns the samples of each optimiser step of one epoch.

    With ``balance="sampler"`` the larger class is drawn once, without replacement; the smaller class is drawn
    as often, in shuffled passes without replacement one after the other, the last of them cut short. Places
    2k and 2k + 1 of the order hold one sample of each class in random order, so that a window of even size
    is balanced too. A sample that comes twice in one epoch has the same augmentation draw both times.

    Args:
        labels: 0 or 1 per sample, ``[N]``.
        batch: B, samples per window.
        seed: of the run.
        epoch: counted from 0 within its stage; -1 gives every sample once, in order, whatever ``balance``.
        balance: as ``data.balance``; "none" and "pos-weight" draw every sample once.

    Returns:
        int64 arrays of ``batch`` indices, the last one shorter where it does not come out even.

    Raises:
        DataError: "sampler", and one class is empty.
    """
    count = len(labels)
    if epoch < 0:
        order = np.arange(count)
    else:
        draw = random_source(seed, epoch, "order")
        order = _balanced(np.asarray(labels), draw) if balance == "sampler" else draw.permutation(count)
    order = order.astype(np.int64, copy=False)
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def shares_of_window(
    window: NDArray[np.int64], *, ranks: int, micro_batches: int
) -> list[list[NDArray[np.int64]]]:
    """Splits a window over processes and accumulation steps; nothing is padded, repeated or dropped.

    The pieces are as even as can be, longer ones first; within one accumulation step the shares of two ranks
    differ by one sample at most. A window of fewer samples than pieces leaves some shares empty.

    Args:
        window: int64 ``[b]``.
        ranks: number of processes.
        micro_batches: accumulation steps of each process.

    Returns:
        ``[rank][step]``, int64 arrays.
    """
    pieces = np.array_split(window, ranks * micro_batches)
    return [[pieces[step * ranks + rank] for step in range(micro_batches)] for rank in range(ranks)]


def positive_weight(labels: Sequence[int] | NDArray[Any]) -> float:
    """Returns n_real / n_generated, the weight of a generated sample's loss under "pos-weight".

    Raises:
        DataError: one class is empty.
    """
    real, generated = _class_sizes(np.asarray(labels))
    return real / generated


def _balanced(labels: NDArray[Any], draw: np.random.Generator) -> NDArray[np.int64]:
    longest = max(_class_sizes(labels))
    pairs = np.empty((longest, 2), dtype=np.int64)
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        passes = [draw.permutation(members) for _ in range(-(-longest // len(members)))]
        pairs[:, label] = np.concatenate(passes)[:longest]
    swapped = draw.random(longest) < 0.5
    pairs[swapped] = pairs[swapped, ::-1]
    return pairs.reshape(-1)


def _class_sizes(labels: NDArray[Any]) -> tuple[int, int]:
    real, generated = int((labels == 0).sum()), int((labels == 1).sum())
    if not real or not generated:
        raise DataError(f"found {real} real and {generated} generated samples, expected some of each")
    return real, generated
