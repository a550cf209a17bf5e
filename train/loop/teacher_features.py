"""Teacher features of stage 1, held for stage 2: the draws of an epoch are the same in both stages.

A sample's augmentation depends on (seed, stage-relative epoch, key) alone, and an epoch has the same windows
in every stage, so epoch e of stage 2 sees the mosaics, in the batches, that epoch e of stage 1 saw. Features
are held, not logits: the teacher head is still moving when they are computed.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logger = logging.getLogger("dgsnet")


class TeacherFeatures:
    """f_t by (epoch, sample), float32 on the CPU.

    Args:
        samples: N, of the training split.
        width: D.
        epochs: how many epochs, from 0, a later stage will ask for.
        limit_bytes: fewer epochs are held when they need more than this.
    """

    def __init__(self, samples: int, width: int, epochs: int, limit_bytes: float) -> None:
        self._shape = (samples, width)
        self._epochs = min(epochs, int(limit_bytes // max(samples * width * 4, 1)))
        self._rows: dict[int, Tensor] = {}
        self._is_known: dict[int, Tensor] = {}
        if self._epochs < epochs:
            logger.info(
                "teacher features: data.teacher_cache_gib holds %d of %d epochs of %.2f GiB each; the rest "
                "is computed again", self._epochs, epochs, samples * width * 4 / 2**30,
            )  # fmt: skip

    def put(self, epoch: int, indices: Tensor, features: Tensor) -> None:
        """Remembers features ``[b, D]`` of samples ``[b]``, unless the epoch is one that nobody asks for."""
        if epoch >= self._epochs:
            return
        if epoch not in self._rows:
            self._rows[epoch] = torch.empty(self._shape)
            self._is_known[epoch] = torch.zeros(self._shape[0], dtype=torch.bool)
        self._rows[epoch][indices] = features.cpu()
        self._is_known[epoch][indices] = True

    def get(self, epoch: int, indices: Tensor) -> Tensor | None:
        """Returns ``[b, D]``, or None unless all of these samples are known: then they are computed again."""
        if epoch not in self._rows or not bool(self._is_known[epoch][indices].all()):
            return None
        return self._rows[epoch][indices]

    def drop_epoch(self, epoch: int) -> None:
        """Frees an epoch that is over."""
        self._rows.pop(epoch, None)
        self._is_known.pop(epoch, None)
