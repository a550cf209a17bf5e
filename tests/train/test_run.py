"""A whole small run: checkpoint layout, reproducibility, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runtime.errors import DataError, UsageError
from train.checkpoint import load_checkpoint, read_record
from train.config import TrainConfig
from train.run import RunSummary, fit_run


def test_fit_run__writes_the_checkpoint_of_the_contract(run_folder: Path) -> None:
    tensors = load_file(run_folder / "checkpoint.safetensors")
    record = json.loads((run_folder / "checkpoint.json").read_text())
    assert tensors["lora.0.q.a"].shape == (6, 256)
    assert tensors["lora.3.v.b"].shape == (256, 6)
    assert {name.split(".")[0] for name in tensors} == {
        "lora", "head_image", "head_teacher", "head_text", "base"
    }  # fmt: skip
    assert tensors["lora.0.q.b"].abs().max() > 0
    assert record["merged"] is False
    assert record["config"]["backbone"] == "dgsnet-tiny-p32"
    assert record["classes"] == ["real", "generated"]
    assert record["data"]["train"] == 24
    steps = [json.loads(line) for line in (run_folder / "logs" / "steps.jsonl").read_text().splitlines()]
    assert [step["stage"] for step in steps] == [1] * 3 + [2] * 6


def test_fit_run__is_reproducible(run_folder: Path, data_set: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_json(read_record(run_folder)["config"])
    fit_run(
        data_set,
        tmp_path / "again",
        config,
        captions=data_set / "captions.json",
        device="cpu",
        overwrite=False,
    )
    first = load_file(run_folder / "checkpoint.safetensors")
    second = load_file(tmp_path / "again" / "checkpoint.safetensors")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_fit_run__keeps_a_finished_run(run_folder: Path, data_set: Path) -> None:
    with pytest.raises(UsageError, match="--overwrite"):
        fit_run(
            data_set,
            run_folder,
            TrainConfig(),
            captions=data_set / "captions.json",
            device="cpu",
            overwrite=False,
        )


def small_data_set(data_set: Path, root: Path) -> Path:
    """Copies four pictures of train and of val, with their captions."""
    captions = json.loads((data_set / "captions.json").read_text())
    for split in ("train", "val"):
        for label in ("0_real", "1_fake"):
            folder = root / split / "blur" / label
            folder.mkdir(parents=True)
            for index in range(2):
                shutil.copy(data_set / split / "blur" / label / f"{index:03d}.png", folder)
    (root / "captions.json").write_text(json.dumps(captions))
    return root


def quick_fit(data: Path, run: Path, **settings: object) -> RunSummary:
    config = TrainConfig(backbone="dgsnet-tiny-p32", pretrained="random").with_values(
        [("data.workers", 0), ("schedule.stage1_epochs", 1), *settings.items()]
    )
    return fit_run(data, run, config, captions=data / "captions.json", device="cpu", overwrite=False)


def test_fit_run__reads_the_val_split_before_it_trains(data_set: Path, tmp_path: Path) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    picture = data / "val/blur/1_fake/001.png"
    picture.write_bytes(picture.read_bytes()[:300])
    with pytest.raises(DataError, match=r"^val/blur/1_fake/001\.png: "):
        quick_fit(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fit_run__keeps_the_model_when_validation_fails(data_set: Path, tmp_path: Path) -> None:
    """With the patches not held in memory, a bad val picture shows after training only."""
    data = small_data_set(data_set, tmp_path / "data")
    picture = data / "val/blur/1_fake/001.png"
    picture.write_bytes(picture.read_bytes()[:300])
    with pytest.raises(DataError, match=r"^val/blur/1_fake/001\.png: "):
        quick_fit(data, tmp_path / "run", **{"data.cache_gib": 0})
    assert load_checkpoint(tmp_path / "run").record["data"]["train"] == 4


def test_fit_run__takes_a_name_that_is_not_utf8(data_set: Path, tmp_path: Path) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    odd = os.fsdecode(b"train/blur/0_real/caf\xe9.png")
    (data / "train/blur/0_real/001.png").rename(data / odd)
    with pytest.raises(DataError, match="1 of 4 samples, first train/blur/0_real/caf\ufffd"):
        quick_fit(data, tmp_path / "run")
    captions = json.loads((data / "captions.json").read_text())
    (data / "captions.json").write_text(json.dumps(captions | {odd: "a caption"}))
    summary = quick_fit(data, tmp_path / "run")
    assert (summary.train_samples, summary.val_samples) == (4, 4)
    assert summary.val_ap is not None
    assert len(read_record(tmp_path / "run")["data"]["fingerprint"]) == 64
