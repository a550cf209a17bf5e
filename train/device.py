"""Which device a command runs on: named on the command line, checked before any work is done."""

from __future__ import annotations

import re

import torch

from runtime.errors import MissingDependencyError, UsageError


def require_device(text: str) -> str:
    """Returns ``text`` when it names a device that is present.

    Args:
        text: "cpu", "cuda", or "cuda:" and an index.

    Raises:
        UsageError: it names no device.
        MissingDependencyError: this machine has no such device.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", text)
    if match is None:
        raise UsageError(f"device: found {text!r}, expected cpu, cuda or cuda:N")
    if text == "cpu":
        return text
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        raise MissingDependencyError(
            f"device: found {count} CUDA GPUs that PyTorch can use, {text} was asked for; give --device cpu"
        )
    return text
