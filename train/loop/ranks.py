"""The processes of a run that torchrun started, or the one process of a run that it did not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from runtime.errors import DgsNetError, UsageError

logger = logging.getLogger("dgsnet")

# The others wait while the first process looks at every picture, which may take hours. A process that ends is
# noticed at once all the same: torchrun stops the rest.
_PATIENCE = timedelta(days=7)
# What gloo and NCCL say when the process at the other end is gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: 0 for the first, which alone writes files and draws progress.
        count: how many there are.
        device: "cpu", or this process's own GPU.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by those of the first process, in place."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Returns a tensor of one shape from every process, in the order of ranks."""
        if self.count == 1:
            return [tensor]
        place = tensor.to(self.device)  # NCCL sends what is on a GPU only
        gathered = [torch.empty_like(place) for _ in range(self.count)]
        distributed.all_gather(gathered, place)
        return [each.to(tensor.device) for each in gathered]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first process runs the block before the others do, and so fills caches on disk for them."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Joins the processes that torchrun started; without torchrun there is one.

    Gradients are added up by one all-reduce of our own: only adapters and heads are trained, a few megabytes,
    and a process without a sample in the last window takes part like any other.

    Args:
        device: "cpu", "cuda" (the GPU of this process's local rank) or "cuda:N" (one process only).

    Raises:
        UsageError: one GPU was named for several processes.
        DgsNetError: another process of the run ended.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(device=device)
        return
    if device.startswith("cuda:"):
        raise UsageError(f"device: found {device} with {count} processes, expected cuda: each takes its own")
    rank = int(os.environ["RANK"])
    place = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    if place != "cpu":
        torch.cuda.set_device(place)
    level = logger.level
    if rank:
        logger.setLevel(logging.ERROR)
    distributed.init_process_group("gloo" if place == "cpu" else "nccl", timeout=_PATIENCE)
    try:
        yield Ranks(rank, count, place)
    except RuntimeError as err:
        if not any(sign in str(err) for sign in _LOST):
            raise
        raise DgsNetError(f"process {rank}: another process of the run ended; its message is above") from err
    finally:
        logger.setLevel(level)
        distributed.destroy_process_group()
