"""The record of every step: RUN/logs/steps.jsonl, and TensorBoard's files beside it."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from runtime.errors import MissingDependencyError

STEPS_NAME = "steps.jsonl"
# So many steps are held back before one transfer from the device brings their figures over.
FLUSH_EVERY = 20


class StepLog:
    """Writes records; the figures of steps wait on the device until ``flush``.

    Args:
        folder: RUN/logs, made if missing; None writes nothing, as in all processes but the first.
        resume_at: bytes of steps.jsonl that a resumed run keeps, 0 for a new run.
        resume_step: first step, over all stages, that a resumed run will write.
        tensorboard: whether TensorBoard's files are written.

    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
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
        # What a killed process wrote after its last saved state is written again.
        self._stream.truncate(resume_at)
        self._stream.seek(resume_at)
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


def _summary_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise MissingDependencyError(
            f'TensorBoard cannot be imported ({err}); pip install "dgsnet[train]", or give --no-tensorboard'
        ) from err
    return SummaryWriter(str(folder), purge_step=first_step or None)
