"""PyTorch's outputs kept from the process that had torch, in the place of the model itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.parity.statistics.compare import Outputs


class StoredOutputs:
    """What a checkpoint gave on some mosaics, looked up by the mosaics: a ``TorchForms`` without torch.

    Args:
        images: mosaics, uint8 ``[N, 224, 224, 3]``.
        unmerged: logits and embeddings with the adapters beside the weights.
        merged: the same with the adapters merged.
    """

    def __init__(self, images: NDArray[np.uint8], unmerged: Outputs, merged: Outputs) -> None:
        self._rows = {image.tobytes(): row for row, image in enumerate(images)}
        self._unmerged = unmerged
        self._merged = merged

    def reference(self, images: NDArray[np.uint8]) -> Outputs:
        """Returns what was kept, adapters beside the weights."""
        return self._kept(self._unmerged, images)

    def merged_reference(self, images: NDArray[np.uint8]) -> Outputs:
        """Returns what was kept, adapters merged."""
        return self._kept(self._merged, images)

    def _kept(self, outputs: Outputs, images: NDArray[np.uint8]) -> Outputs:
        rows = [self._rows[image.tobytes()] for image in images]
        return outputs[0][rows], outputs[1][rows]
