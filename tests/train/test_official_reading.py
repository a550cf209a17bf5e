"""Foreign .pth files: tensors are read, code is not run, and what is no checkpoint is named."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError
from train.official.importing import read_checkpoint_file
from train.official.reading import check_finite, read_state


def saved(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refused(file: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint_file(file)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_read_state__reads_both_formats_of_torch(tmp_path: Path, is_zip: bool) -> None:
    content = {"module.a": torch.arange(6.0).view(2, 3), "module.b": torch.ones(2).half()}
    state = read_state(saved(content, tmp_path / "f.pth", _use_new_zipfile_serialization=is_zip))
    assert torch.equal(state["a"], content["module.a"])
    assert state["b"].dtype == torch.float16
    mixed = read_state(saved(content | {"c": torch.ones(1)}, tmp_path / "g.pth"))
    assert set(mixed) == {"module.a", "module.b", "c"}  # no DataParallel wrote this


class Hostile:
    """Creates a folder when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
def test_read_state__never_runs_what_is_pickled(tmp_path: Path, kind: str) -> None:
    file, target = tmp_path / "hostile.pth", tmp_path / "ran"
    if kind == "bare":
        file.write_bytes(pickle.dumps(Hostile(target)))
    else:
        content = {"img_fc.weight": torch.zeros(1, 2), "img_fc.bias": Hostile(target)}
        saved(content, file, _use_new_zipfile_serialization=kind == "zip")
    refused(file, r"hostile.pth: .*expected a state dict of tensors")
    assert not target.exists()
    # The file does run code where it is let.
    pickle.loads(file.read_bytes()) if kind == "bare" else torch.load(file, weights_only=False)
    assert target.exists()


def test_read_state__names_the_class_that_it_will_not_build(tmp_path: Path) -> None:
    refused(saved({"a": Hostile(tmp_path)}, tmp_path / "f.pth"), r"holds a pickled posix.mkdir, .*never run")


def test_read_state__refuses_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "f.pth"
    whole = saved({"weight": torch.zeros(100, 100)}, tmp_path / "whole.pth").read_bytes()
    for content in (b"", b"no pickle at all", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-40]):
        file.write_bytes(content)
        refused(file, "f.pth: cannot be read .*fetch it again")
    refused(tmp_path / "none.pth", "none.pth: cannot be read .*No such file")
    refused(tmp_path, "cannot be read")
    with zipfile.ZipFile(tmp_path / "whole.pth") as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED)
    refused(file, "is compressed, which torch.save never does")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "found a Tensor"),
        ({}, "an empty dict"),
        ({"weight": torch.zeros(1, 2), "epoch": 3}, "found 'epoch' of type int"),
        ({"model": {"weight": torch.zeros(1)}}, "found 'model' of type dict"),
        ({3: torch.zeros(1)}, "found '3' of type Tensor"),
        ({"a": torch.zeros(1, dtype=torch.int64)}, "a is a torch.strided tensor of torch.int64"),
        ({"a": torch.zeros(1, dtype=torch.bfloat16)}, "torch.bfloat16"),
        ({"a": torch.zeros(1).to_sparse()}, "torch.sparse_coo"),
        ({"a": torch.zeros(3, device="meta")}, "of torch.float32 on meta, expected"),
        (
            {"fc.weight": torch.zeros(2), "bad\n\x1b[2J": torch.zeros(1)},
            r"2 tensors such as bad\\n\\x1b\[2J, fc",
        ),
        (
            {"clip_model_frozen.visual.proj": torch.zeros(1), "img_frozen_fc.weight": torch.zeros(1)},
            "a stage-1 file.*expected one of stage 2",
        ),
    ],
)
def test_read_checkpoint_file__names_what_it_found(tmp_path: Path, content: object, message: str) -> None:
    refused(saved(content, tmp_path / "f.pth"), message)


def test_read_checkpoint_file__tells_the_kinds(tmp_path: Path) -> None:
    head = {"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}
    assert read_checkpoint_file(saved(head, tmp_path / "f.pth"))[0] == "univfd"
    whole = {"module.clip_model.visual.proj": torch.zeros(4, 4)}
    assert read_checkpoint_file(saved(whole, tmp_path / "f.pth"))[0] == "dgs-net"


@pytest.mark.parametrize("change", [lambda t: t.fill_(math.nan), lambda t: t[1].fill_(math.inf)])
def test_check_finite__names_the_tensor(change: Callable[[torch.Tensor], object]) -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(2).half()}
    check_finite("f.pth", state)
    change(state["b"])
    with pytest.raises(CheckpointError, match=r"f\.pth: b holds NaN or Inf"):
        check_finite("f.pth", state)
