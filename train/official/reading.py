"""Foreign .pth files: tensors by name, read without ever running what is pickled in them.

``torch.load(weights_only=True)`` builds tensors and containers and refuses every other object. Files of the
zip format, which torch has written since 1.6, are mapped into memory, so that a file of several GB costs
address space and page cache only.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from runtime.console import Progress
from runtime.errors import CheckpointError
from runtime.names import printable_name

DTYPES = (torch.float32, torch.float16)
_MIB = 1 << 20
_CHUNK = 16 * _MIB
# What torch and zipfile raise for files that are no checkpoints, or for damaged ones.
_UNREADABLE = (
    RuntimeError, OSError, EOFError, pickle.UnpicklingError, AttributeError, KeyError, IndexError, TypeError,
    ValueError, zipfile.BadZipFile, AssertionError, NotImplementedError,
)  # fmt: skip
_FOREIGN_OBJECT = re.compile(r"GLOBAL (\S+)")
_EXPECTED = "expected a state dict of tensors saved by torch.save"


def read_state(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict on the CPU, with DataParallel's ``module.`` taken off the names.

    They are views of the mapped file: read them, never write to them.

    Raises:
        CheckpointError: not readable, holds anything but float32 or float16 tensors by name, or objects that
            only running code could build.
    """
    place = printable_name(str(file))
    try:
        is_zip = zipfile.is_zipfile(file)
        if is_zip:
            _require_stored(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of content that are refused below
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except _UNREADABLE as err:
        match = _FOREIGN_OBJECT.search(str(err))
        if match:
            raise CheckpointError(
                f"{place}: holds a pickled {printable_name(match[1])[:80]}, {_EXPECTED}; code in a file is "
                "never run, so save the state dict alone"
            ) from err
        reason = str(err).strip().split("\n")[0][:200]
        raise CheckpointError(
            f"{place}: cannot be read ({type(err).__name__}: {reason}), {_EXPECTED}; fetch it again"
        ) from err
    return _named_tensors(place, content)


def sha256_of(file: Path) -> str:
    """Returns the SHA-256 (hex) of a file's bytes, showing progress.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    size = file.stat().st_size
    with (
        file.open("rb") as stream,
        Progress(f"hashing {printable_name(file.name)} (MiB)", size // _MIB) as bar,
    ):
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            bar.advance(len(chunk) // _MIB)
    return digest.hexdigest()


def check_finite(place: str, state: dict[str, Tensor]) -> None:
    """Refuses NaN and Inf.

    Raises:
        CheckpointError: names the first tensor that holds one.
    """
    with Progress("checking tensors", len(state)) as bar:
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"{place}: {name} holds NaN or Inf, expected finite weights; fetch it again"
                )
            bar.advance()


def _named_tensors(place: str, content: object) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        found = "an empty dict" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(f"{place}: found {found}, {_EXPECTED}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{place}: found {printable_name(str(name))[:80]!r} of type "
                f"{type(tensor).__name__}, {_EXPECTED}"
            )
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
            raise CheckpointError(
                f"{place}: {printable_name(name)[:80]} is a {tensor.layout} tensor of {tensor.dtype} "
                f"on {tensor.device}, expected dense float32 or float16"
            )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in content.items()}


def _require_stored(file: Path) -> None:
    """Mapping reads an entry's bytes as they lie in the file, which are no tensor where they are packed."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename[:80]} is compressed, which torch.save never does")
