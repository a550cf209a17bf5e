"""Mosaics for training and scoring, made with the runtime's own decoder and patch selection.

The augmentation draw of a sample is a pure function of (seed, stage-relative epoch, key), so that neither
the number of workers nor the order of samples changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.console import Progress
from runtime.decode import decode_image
from runtime.errors import DataError, ImageError
from runtime.patches import mosaic_from_patches, selected_patches
from runtime.spec import PATCH_COUNT, PATCH_SIDE
from train.config import DataConfig
from train.data.layout import Sample

PATCH_BYTES = PATCH_COUNT * PATCH_SIDE * PATCH_SIDE * 3


class MosaicSet(Dataset[tuple[Tensor, int] | DataError]):
    """The samples of one split as mosaics.

    Args:
        samples: what to read.
        config: cache size, workers, flip, batch.
        seed: of every draw.
        title: shown while the patches are read into memory.
    """

    def __init__(self, samples: Sequence[Sample], config: DataConfig, *, seed: int, title: str) -> None:
        self.samples = list(samples)
        self.config = config
        self.seed = seed
        self.labels = torch.tensor([float(sample.label) for sample in samples])
        self._cache: NDArray[np.uint8] | None = None
        if len(self.samples) * PATCH_BYTES <= config.cache_gib * 2**30:
            self._cache = self._read_all(title)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int] | DataError:
        """Returns (mosaic uint8 ``[224, 224, 3]``, index) for (index, epoch); epoch -1 is inference.

        A picture that cannot be read gives its error as the value, for ``batches`` to raise: what a worker
        process raises arrives with the worker's traceback as its message.
        """
        index, epoch = place
        try:
            patches = self._read(index) if self._cache is None else self._cache[index]
        except DataError as err:
            return err
        if epoch < 0:
            return torch.from_numpy(mosaic_from_patches(patches)), index
        draw = _generator(self.seed, epoch, self.samples[index].key)
        mosaic = mosaic_from_patches(patches, draw.permutation(PATCH_COUNT))
        if self.config.flip and draw.random() < 0.5:
            mosaic = np.ascontiguousarray(mosaic[:, ::-1])
        return torch.from_numpy(mosaic), index

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (mosaics uint8 ``[b, 224, 224, 3]``, indices int64 ``[b]``) of one epoch.

        Args:
            epoch: counted from 0 within its stage; -1 gives every sample in order, as at inference.

        Raises:
            DataError: a picture cannot be read.
        """
        count = len(self)
        order = np.arange(count) if epoch < 0 else _generator(self.seed, epoch, "order").permutation(count)
        places = [
            [(int(index), epoch) for index in order[start : start + self.config.batch]]
            for start in range(0, count, self.config.batch)
        ]
        workers = 0 if self._cache is not None else self.config.workers
        for batch in DataLoader(self, batch_sampler=places, num_workers=workers, collate_fn=_collate):
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def steps(self) -> int:
        """Returns the number of batches of an epoch; the last one may be smaller."""
        return -(-len(self) // self.config.batch)

    def _read(self, index: int) -> NDArray[np.uint8]:
        sample = self.samples[index]
        try:
            return selected_patches(decode_image(sample.path))
        except ImageError as err:
            raise DataError(f"{sample.name}: {err}") from err

    def _read_all(self, title: str) -> NDArray[np.uint8]:
        shape = (len(self.samples), PATCH_COUNT, PATCH_SIDE, PATCH_SIDE, 3)
        cache = np.empty(shape, dtype=np.uint8)
        with ThreadPoolExecutor(max(self.config.workers, 1)) as pool, Progress(title, len(cache)) as progress:
            for index, patches in enumerate(pool.map(self._read, range(len(cache)))):
                cache[index] = patches
                progress.advance()
        return cache


def _collate(items: Sequence[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    images, indices = [], []
    for item in items:
        if isinstance(item, DataError):
            return item
        images.append(item[0])
        indices.append(item[1])
    return torch.stack(images), torch.tensor(indices)


def _generator(seed: int, epoch: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\0{epoch}\0{key}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
