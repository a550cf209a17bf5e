"""The record of every step: RUN/logs/steps.jsonl, and TensorBoard's files beside it."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from runtime.errors import MissingDependencyError

logger = logging.getLogger("dgsnet")

STEPS_NAME = "steps.jsonl"
# So many steps are held back before one transfer from the device brings their figures over.
FLUSH_EVERY = 20


class StepLog:
    """Writes records; the figures of steps wait on the device until ``flush``.

    Args:
        folder: RUN/logs, made if missing; None writes nothing, as in all processes but the first.
        resume_at: bytes of steps.jsonl that a resumed run keeps, 0 for a new run.
        resume_step: first step, over all stages, that a resumed run will write.
        tensorboard: whether TensorBoard's files are written; see ``require_tensorboard``.
    """

    def __init__(
        self, folder: Path | None, *, resume_at: int = 0, resume_step: int = 0, tensorboard: bool = True
    ) -> None:
        self._stream = None
        self._board: Any = None
        if folder is None:
            return
        if not resume_at:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / STEPS_NAME).open("ab")
        size = self._stream.seek(0, os.SEEK_END)
        if size < resume_at:
            logger.warning("%s lacks records of earlier steps, which stay lost", folder / STEPS_NAME)
        # What a killed process wrote after its last saved state is written again.
        self._stream.truncate(min(size, resume_at))
        self._stream.seek(0, os.SEEK_END)
        if tensorboard:
            self._board = _summary_writer(folder, resume_step)

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._board is not None:
            self._board.close()

    def write(self, record: dict[str, Any], *, step: int) -> None:
        """Writes one record; figures that are not finite become null, since JSON has none.

        Args:
            record: names and values; TensorBoard shows the numbers as ``stage<n>/<name>``.
            step: over all stages.
        """
        if self._stream is None:
            return
        finite = {key: None if _is_odd(value) else value for key, value in record.items()}
        self._stream.write((json.dumps(finite, allow_nan=False) + "\n").encode())
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"stage{record['stage']}/{name}", value, step)

    def sync(self) -> int:
        """Makes what was written durable and returns the size of steps.jsonl in bytes."""
        if self._stream is None:
            return 0
        self._stream.flush()
        os.fsync(self._stream.fileno())
        if self._board is not None:
            self._board.flush()
        return self._stream.tell()


def floats_from_rows(rows: list[Tensor]) -> list[list[float]]:
    """Returns several float32 ``[k]`` on one device as lists, in one transfer."""
    import torch

    return [[float(x) for x in row] for row in torch.stack(rows).cpu().tolist()] if rows else []


def _is_odd(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def require_tensorboard() -> None:
    """Finds out whether TensorBoard is installed, without loading it.

    Raises:
        MissingDependencyError: it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError(
            'TensorBoard is not installed; pip install "dgsnet[train]", or give --no-tensorboard'
        )


def _summary_writer(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step or None)
