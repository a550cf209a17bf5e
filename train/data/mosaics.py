"""Mosaics for training and scoring, made with the runtime's own decoder and patch selection.

What is read, in which order and with which draws depends on the caller's lists, the seed and the epoch alone,
never on the number of workers or on what is held in memory.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.console import Progress
from runtime.decode import decode_image
from runtime.errors import DataError, ImageError
from runtime.patches.selection import mosaic_from_patches, selected_patches
from runtime.spec import MOSAIC_SIDE, PATCH_COUNT, PATCH_SIDE
from train.config import DataConfig
from train.data.augment import augment_image, augment_patches, changes_pictures
from train.data.layout import Sample
from train.data.order import epoch_windows

logger = logging.getLogger("dgsnet.data")

PATCH_BYTES = PATCH_COUNT * PATCH_SIDE * PATCH_SIDE * 3


class MosaicSet(Dataset[tuple[Tensor, int] | DataError]):
    """The samples of one split as mosaics.

    Args:
        samples: what to read.
        config: cache size, workers, augmentation, batch, balance.
        seed: of every draw.
        title: shown while the patches are read into memory.
        degrade: changes every picture after decoding, before its patches are selected: uint8 ``[H, W, 3]``
            to uint8 ``[h, w, 3]``.

    Attributes:
        samples: as given.
        labels: y of each, float32 ``[N]``.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        config: DataConfig,
        *,
        seed: int,
        title: str,
        degrade: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ) -> None:
        self.samples = list(samples)
        self.config = config
        self.seed = seed
        self.title = title
        self.degrade = degrade
        self.labels = torch.tensor([float(sample.label) for sample in samples])
        self._cache: NDArray[np.uint8] | None = None
        self._has_told = False
        if self._fits and not changes_pictures(config):
            self._cache = self._read_all()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int] | DataError:
        """Returns (mosaic uint8 ``[224, 224, 3]``, index) for (index, epoch); epoch -1 is inference.

        A picture that cannot be read gives its error as the value, for ``read`` to raise: what a worker
        process raises arrives with the worker's traceback as its message.
        """
        index, epoch = place
        try:
            patches = self._patches(index, epoch)
        except DataError as err:
            return err
        if epoch < 0:
            return torch.from_numpy(mosaic_from_patches(patches)), index
        key = self.samples[index].key
        mosaic = augment_patches(patches, self.config, seed=self.seed, epoch=epoch, key=key)
        return torch.from_numpy(mosaic), index

    def read(
        self, batches: Sequence[Sequence[int] | NDArray[np.int64]], epoch: int, *, pin: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (mosaics uint8 ``[b, 224, 224, 3]``, indices int64 ``[b]``) of the lists given, in order.

        torch's global random state is neither read nor changed.

        Args:
            batches: indices into ``samples``; an empty list gives tensors with b = 0.
            epoch: counted from 0 within its stage; -1 gives mosaics as at inference.
            pin: into page-locked memory, which CUDA copies from without waiting.

        Raises:
            DataError: a picture cannot be read.
        """
        changes = self._changes(epoch)
        if changes and not self._has_told:
            self._has_told = True
            logger.info(
                "data.jpeg, data.blur or data.resize is on: pictures are decoded and their patches selected "
                "anew in every epoch, not held in memory"
            )
        if not changes and self._cache is None and self._fits:
            self._cache = self._read_all()
        is_held = self._cache is not None and not changes
        with warnings.catch_warnings():
            # How many workers there are is the user's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = DataLoader(
                self,
                batch_sampler=[[(int(index), epoch) for index in batch] for batch in batches],
                num_workers=0 if is_held else self.config.workers,
                collate_fn=_collate,
                pin_memory=pin,
                # The seed of the workers would else be drawn from torch's global state.
                generator=torch.Generator().manual_seed(0),
                worker_init_fn=_leave_interrupts_to_the_parent,
            )
            reading = iter(loader)
        for batch in reading:
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields what ``read`` does for the windows of one epoch, in the order of ``epoch_windows``.

        Args:
            epoch: counted from 0 within its stage; -1 gives every sample in order, as at inference.

        Raises:
            DataError: a picture cannot be read.
        """
        config = self.config
        labels = self.labels.numpy()
        windows = epoch_windows(
            labels, batch=config.batch, seed=self.seed, epoch=epoch, balance=config.balance
        )
        return self.read(windows, epoch)

    @property
    def _fits(self) -> bool:
        return len(self.samples) * PATCH_BYTES <= self.config.cache_gib * 2**30

    def _changes(self, epoch: int) -> bool:
        return epoch >= 0 and changes_pictures(self.config)

    def _patches(self, index: int, epoch: int) -> NDArray[np.uint8]:
        if self._cache is not None and not self._changes(epoch):
            return self._cache[index]
        sample = self.samples[index]
        try:
            image = decode_image(sample.source())
            if self.degrade is not None:
                image = self.degrade(image)
            if self._changes(epoch):
                image = augment_image(image, self.config, seed=self.seed, epoch=epoch, key=sample.key)
            return selected_patches(image)
        except ImageError as err:
            raise DataError(f"{sample.name}: {err}") from err

    def _read_all(self) -> NDArray[np.uint8]:
        shape = (len(self.samples), PATCH_COUNT, PATCH_SIDE, PATCH_SIDE, 3)
        cache = np.empty(shape, dtype=np.uint8)
        with (
            ThreadPoolExecutor(max(self.config.workers, 1)) as pool,
            Progress(self.title, len(cache)) as progress,
        ):
            patches_of = pool.map(lambda index: self._patches(index, -1), range(len(cache)))
            for index, patches in enumerate(patches_of):
                cache[index] = patches
                progress.advance()
        return cache


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    # Ctrl-C reaches the whole group, and the parent still wants this step's batch. SIGTERM must keep its
    # meaning: Python ends left-over workers by it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: Sequence[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    images, indices = [], []
    for item in items:
        if isinstance(item, DataError):
            return item
        images.append(item[0])
        indices.append(item[1])
    if not images:
        empty = torch.empty(0, MOSAIC_SIDE, MOSAIC_SIDE, 3, dtype=torch.uint8)
        return empty, torch.empty(0, dtype=torch.int64)
    return torch.stack(images), torch.tensor(indices)
