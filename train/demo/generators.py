"""Three small generators that differ in their up-sampling alone: fitted here, on the training photographs.

Each is an autoencoder, so a fake shows the same scene as the photograph it came from and the traces of
its up-sampling are what gives it away. Imports torch; loaded only by ``train.demo.build``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

PEAK_LEARNING_RATE = 3e-3


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    # Reflection instead of zeros: zero padding darkens a ring along the border that real pictures lack.
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, padding_mode="reflect")


def _nearest(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), _conv(inputs, outputs))


def _transposed(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)


def _pixel_shuffle(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(_conv(inputs, 4 * outputs), nn.PixelShuffle(2))


UPSAMPLINGS: dict[str, Callable[[int, int], nn.Module]] = {
    "nearest": _nearest,
    "transposed": _transposed,
    "pixelshuffle": _pixel_shuffle,
}


class Generator(nn.Module):
    """Convolutional autoencoder: two strided convolutions down, two up-sampling steps of one family back.

    Maps float32 `[B, 3, H, W]` in [0, 1] to the same shape, H and W multiples of 4; the code in between
    is `[B, code_channels, H/4, W/4]`.
    """

    def __init__(self, family: str, width: int, code_channels: int) -> None:
        super().__init__()
        upsample = UPSAMPLINGS[family]
        self.encoder = nn.Sequential(
            _conv(3, width, 2),
            nn.SiLU(),
            _conv(width, 2 * width, 2),
            nn.SiLU(),
            _conv(2 * width, code_channels),
        )
        self.decoder = nn.Sequential(
            _conv(code_channels, 2 * width),
            nn.SiLU(),
            upsample(2 * width, width),
            nn.SiLU(),
            upsample(width, width),
            nn.SiLU(),
            _conv(width, 3),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstructs ``images``; values may leave [0, 1] a little."""
        return self.decoder(self.encoder(images * 2 - 1)) * 0.5 + 0.5


@contextmanager
def deterministic_torch(seed: int) -> Iterator[None]:
    """Fixed seed, one thread an operation, fixed algorithms inside; the caller's state comes back afterwards.

    With one thread an operation the result does not depend on the number of cores. It also keeps fitting
    fast beside other work: two processes of two OpenMP threads each on two cores, waiting for one another
    in every small operation, were over ten times slower than one alone.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)


def fit_generators(
    families: Sequence[str],
    pictures: Sequence[NDArray[np.uint8]],
    *,
    seed: int,
    steps: int,
    width: int,
    code_channels: int,
    batch: int,
    crop: int,
    workers: int,
    on_step: Callable[[], None],
) -> dict[str, Generator]:
    """Fits one generator a family on random crops of the training photographs, several families at a time.

    Args:
        families: keys of ``UPSAMPLINGS``.
        pictures: uint8 `[H, W, 3]` each, both sides at least ``crop``.
        seed: decides initial weights and crops, with the name of the family; ``workers`` decides nothing.
        steps: optimiser steps.
        width: channels at half resolution.
        code_channels: channels of the code at a quarter of the resolution.
        batch: crops a step.
        crop: side of a crop in pixels, a multiple of 4.
        workers: threads, one family each.
        on_step: called after each step, never by two threads at once.

    Returns:
        By family, the fitted generator, in evaluation mode, on the CPU.
    """
    lock = Lock()
    stopped = Event()

    def fit(family: str, generator: Generator) -> None:
        # Nothing here draws from torch's global generator, which the threads share.
        rng = np.random.default_rng([seed, 1, *family.encode()])
        optimiser = torch.optim.Adam(generator.parameters(), lr=PEAK_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=PEAK_LEARNING_RATE, total_steps=max(steps, 2)
        )
        for _ in range(steps):
            if stopped.is_set():
                return
            images = _batch(pictures, rng, batch, crop).contiguous(memory_format=torch.channels_last)
            loss = functional.l1_loss(generator(images), images)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            with lock:
                on_step()

    with deterministic_torch(seed), ThreadPoolExecutor(workers) as pool:
        generators = {
            family: Generator(family, width, code_channels).to(memory_format=torch.channels_last)
            for family in families
        }
        try:
            jobs = [pool.submit(fit, *item) for item in generators.items()]
            for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                job.result()
        except BaseException:
            # Leaving the pool waits for its threads: after Ctrl-C they must not fit on for minutes.
            stopped.set()
            raise
    return {family: generator.eval() for family, generator in generators.items()}


def generate(generator: Generator, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The generator's picture of one crop: uint8 `[H, W, 3]` in and out, sides multiples of 4.

    Call it inside ``deterministic_torch``; several threads may.
    """
    with torch.inference_mode():
        images = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None].float().div_(255)
        images = images.contiguous(memory_format=torch.channels_last)
        output = generator(images).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return output[0].permute(1, 2, 0).contiguous().numpy()


def _batch(
    pictures: Sequence[NDArray[np.uint8]], rng: np.random.Generator, count: int, side: int
) -> torch.Tensor:
    areas = np.array([picture.shape[0] * picture.shape[1] for picture in pictures], dtype=np.float64)
    crops = np.empty((count, side, side, 3), dtype=np.uint8)
    for row, index in enumerate(rng.choice(len(pictures), size=count, p=areas / areas.sum())):
        picture = pictures[index]
        top = rng.integers(picture.shape[0] - side + 1)
        left = rng.integers(picture.shape[1] - side + 1)
        # A handful of photographs lacks whole hues; with the channels shuffled, a generator learns them all.
        crop = picture[top : top + side, left : left + side, rng.permutation(3)]
        crops[row] = crop[:, ::-1] if rng.integers(2) else crop
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)
