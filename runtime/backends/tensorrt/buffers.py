"""The memory of one lane: pinned staging for every tensor, and where the device finds each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.cuda.interface import CudaApi, DeviceMemory, PinnedMemory, Stream
from runtime.cuda.releases import Releases


@dataclass(frozen=True)
class TensorBuffer:
    """One tensor's staging and device memory, sized for the largest batch.

    Attributes:
        row_bytes: bytes of one row of the batch.
        staging: pinned memory on the CPU.
        address: what TensorRT is given.
        device: memory of the device, None where it works on the staging itself.
    """

    row_bytes: int
    staging: PinnedMemory
    address: int
    device: DeviceMemory | None

    def rows(self, count: int) -> NDArray[np.uint8]:
        """Returns the staging bytes of the first rows."""
        return self.staging.array[: count * self.row_bytes]


def allocate_buffer(
    cuda: CudaApi, releases: Releases, *, row_bytes: int, rows: int, zero_copy: bool
) -> TensorBuffer:
    """Allocates a tensor's buffer, to be freed by ``releases``.

    Args:
        cuda: the CUDA binding.
        releases: takes the calls that free it.
        row_bytes: bytes of one row of the batch.
        rows: the largest batch.
        zero_copy: whether the device works on the staging itself.
    """
    staging = cuda.allocate_pinned(rows * row_bytes, mapped=zero_copy)
    releases.add(lambda: cuda.free_pinned(staging))
    if zero_copy:
        return TensorBuffer(row_bytes, staging, cuda.mapped_address(staging), None)
    device = cuda.allocate(rows * row_bytes)
    releases.add(lambda: cuda.free(device))
    return TensorBuffer(row_bytes, staging, device.address, device)


def queue_copy_in(cuda: CudaApi, buffer: TensorBuffer, rows: int, stream: Stream) -> None:
    """Queues the copy of the first rows to the device, if it has memory of its own."""
    if buffer.device is not None:
        cuda.copy_in(buffer.device, buffer.rows(rows), stream)


def queue_copy_out(cuda: CudaApi, buffer: TensorBuffer, rows: int, stream: Stream) -> None:
    """Queues the copy of the first rows from the device, if it has memory of its own."""
    if buffer.device is not None:
        cuda.copy_out(buffer.rows(rows), buffer.device, stream)
