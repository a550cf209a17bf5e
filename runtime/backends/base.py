"""What every backend offers, and the checks that stand before and after each run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import EngineLoadError, SpecError
from runtime.forking import Owner, keep_in_children
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE


class Backend(ABC):
    """One opened engine. Use as a context manager, or call ``close``. Any number of threads may call ``run``.

    It works in the process that opened it: in a fork of that ``run`` raises, and nothing is freed.

    Attributes:
        name: what ran, as reports show it, such as "onnxruntime:cpu".
        embed_dim: width D of the embedding.
        profile: (min, opt, max) batch size.
        owner: the process that opened it.
    """

    def __init__(self, name: str, embed_dim: int, profile: tuple[int, int, int]) -> None:
        self.name = name
        self.embed_dim = embed_dim
        self.profile = profile
        self.owner = Owner()
        keep_in_children(self)

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Runs the graph on a batch of mosaics.

        A batch below the profile's minimum is filled up with its last row, and the surplus is dropped.

        Args:
            images: uint8 ``[n, 224, 224, 3]``, 1 <= n <= the profile's maximum.

        Returns:
            Raw logits, float32 ``[n]``, and embeddings, float32 ``[n, D]``.

        Raises:
            SpecError: ``images`` is something else.
            EngineLoadError: the engine failed, or gave something other than its contract.
            UsageError: this process was forked from the one that opened the engine.
        """
        self.owner.check("the engine")
        self._check_images(images)
        count, least = len(images), self.profile[0]
        if count < least:
            images = np.concatenate([images, np.repeat(images[-1:], least - count, axis=0)])
        logit, embedding = self._infer(np.ascontiguousarray(images))
        self._check_output(LOGIT_NAME, logit, (len(images),))
        self._check_output(EMBEDDING_NAME, embedding, (len(images), self.embed_dim))
        return logit[:count], embedding[:count]

    @abstractmethod
    def close(self) -> None:
        """Frees what the engine holds; harmless when called twice, and in a child that was forked."""

    @abstractmethod
    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Runs a checked, contiguous batch within the profile."""

    def _check_images(self, images: Any) -> None:
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise SpecError(f"{INPUT_NAME}: found {found}, expected a uint8 array")
        if images.ndim != 4 or images.shape[1:] != (MOSAIC_SIDE, MOSAIC_SIDE, 3):
            raise SpecError(f"{INPUT_NAME}: found shape {list(images.shape)}, expected [n, 224, 224, 3]")
        if not 1 <= len(images) <= self.profile[2]:
            raise SpecError(
                f"{INPUT_NAME}: found a batch of {len(images)}, this engine takes 1 to {self.profile[2]}"
            )

    def _check_output(self, name: str, value: NDArray[Any], shape: tuple[int, ...]) -> None:
        if value.dtype != np.float32 or value.shape != shape:
            raise EngineLoadError(
                f"{name}: found {value.dtype} {list(value.shape)}, expected float32 {list(shape)}; "
                "the graph breaks its contract, rebuild the bundle"
            )
