"""A whole small run: checkpoint layout, reproducibility, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from runtime.errors import CheckpointError, DataError, GateFailedError, UsageError
from train.checkpoint import load_checkpoint, read_record
from train.config import TrainConfig
from train.data.layout import find_samples
from train.evaluation.scores import score_samples
from train.fit_options import FitOptions, RunSummary
from train.loop import trainer
from train.metrics import average_precision
from train.run import fit_run

QUIET = FitOptions(tensorboard=False)


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
    assert [step["stage"] for step in steps if "lr" in step] == [1] * 3 + [2] * 6
    assert [step["step"] for step in steps if "val_ap" in step] == [
        2,
        5,
    ]  # after each epoch of the last stage


def test_fit_run__is_reproducible(run_folder: Path, data_set: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_json(read_record(run_folder)["config"])
    fit_run(data_set, tmp_path / "again", config, QUIET)
    first = load_file(run_folder / "checkpoint.safetensors")
    second = load_file(tmp_path / "again" / "checkpoint.safetensors")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_fit_run__keeps_a_finished_run(run_folder: Path, data_set: Path) -> None:
    with pytest.raises(UsageError, match="--overwrite"):
        fit_run(data_set, run_folder, TrainConfig(), QUIET)


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


def quick_fit(data: Path, run: Path, options: FitOptions = QUIET, **settings: object) -> RunSummary:
    config = TrainConfig(backbone="dgsnet-tiny-p32", pretrained="random").with_values(
        [("data.workers", 0), ("schedule.stage1_epochs", 1), *settings.items()]
    )
    summary = fit_run(data, run, config, options)
    assert summary is not None
    return summary


def truncate(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:300])


def test_fit_run__leaves_unreadable_pictures_out(data_set: Path, tmp_path: Path) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    truncate(data / "train/blur/1_fake/001.png")
    with pytest.raises(DataError, match=r"train/blur/1_fake/001\.png"):
        quick_fit(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    summary = quick_fit(data, tmp_path / "run", **{"data.max_corrupt": 0.3})
    assert (summary.train_samples, summary.val_samples, summary.unreadable) == (3, 4, 1)
    assert read_record(tmp_path / "run")["data"]["unreadable"] == 1


def test_fit_run__loses_no_training_when_a_val_picture_goes_bad(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops at its validation and goes on from there once the picture is back."""
    data = small_data_set(data_set, tmp_path / "data")
    picture = data / "val/blur/1_fake/001.png"
    content = picture.read_bytes()
    real = trainer.validation_logits

    def with_a_bad_picture(*arguments: Any) -> Any:
        truncate(picture)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "validation_logits", with_a_bad_picture)
        with pytest.raises(DataError, match=r"^val/blur/1_fake/001\.png: "):
            quick_fit(data, tmp_path / "run", **{"data.cache_gib": 0})
    picture.write_bytes(content)
    resume = FitOptions(resume=True, tensorboard=False)
    summary = quick_fit(data, tmp_path / "run", resume, **{"data.cache_gib": 0})
    assert (summary.steps, summary.val_samples) == (2, 4)
    whole = quick_fit(data, tmp_path / "whole", **{"data.cache_gib": 0})
    assert whole.val_ap == summary.val_ap
    first, second = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("recipe", ["linear", "lora", "dgs"])
def test_fit_run__every_recipe_gives_a_run_that_loads(data_set: Path, tmp_path: Path, recipe: str) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    if recipe != "dgs":
        (data / "captions.json").unlink()  # neither of them reads captions
    quick_fit(data, tmp_path / "run", recipe=recipe, **{"surgery.text_head": "mlp"})
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.config.recipe == recipe
    kinds = {name.split(".")[0] for name in load_file(tmp_path / "run" / "checkpoint.safetensors")}
    heads = {"head_image", "head_teacher", "head_text"} if recipe == "dgs" else {"head_image"}
    assert kinds == {"base", *heads} | (set() if recipe == "linear" else {"lora"})
    logit, embedding = checkpoint.model(torch.zeros(2, 224, 224, 3, dtype=torch.uint8))
    assert (logit.shape, embedding.shape) == ((2,), (2, 256))


def test_fit_run__needs_captions_or_a_word_for_them(data_set: Path, tmp_path: Path) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    (data / "captions.json").unlink()
    with pytest.raises(UsageError, match=r"--captions template"):
        quick_fit(data, tmp_path / "run")
    summary = quick_fit(data, tmp_path / "run", FitOptions(captions="template", tensorboard=False))
    assert summary.steps == 2


def test_fit_run__dry_run_and_overfitting_write_nothing(
    data_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    with caplog.at_level("INFO", logger="dgsnet"):
        summary = quick_fit(data, tmp_path / "run", FitOptions(dry_run=True))
    assert (summary.steps, summary.train_samples) == (0, 4)
    spoken = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("stage 1: 1 steps of ") for line in spoken)
    assert any(line.startswith("stage 2: 1 steps of ") for line in spoken)
    learnt = quick_fit(data, tmp_path / "run", FitOptions(overfit_steps=30), **{"optim.lr": 3e-3}).overfit
    assert learnt is not None
    assert learnt[1] < 0.5 * learnt[0]
    with pytest.raises(GateFailedError, match="expected less than half"):
        quick_fit(data, tmp_path / "run", FitOptions(overfit_steps=3), **{"optim.lr": 1e-9})
    assert not (tmp_path / "run").exists()


def test_fit_run__overfitting_in_fp16_learns_too(data_set: Path, tmp_path: Path) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    settings = {"optim.lr": 3e-3, "optim.amp": "fp16", "optim.accumulate": 2}
    learnt = quick_fit(data, tmp_path / "run", FitOptions(overfit_steps=30), **settings).overfit
    assert learnt is not None
    assert learnt[1] < 0.5 * learnt[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("schedule.keep", "best"),
        ("schedule.patience", 1),
        ("schedule.keep_last", 1),
        ("schedule.validate_every", 1),
    ],
)
def test_fit_run__refuses_to_measure_without_a_val_split(
    data_set: Path, tmp_path: Path, setting: str, value: object
) -> None:
    data = small_data_set(data_set, tmp_path / "data")
    shutil.rmtree(data / "val")
    with pytest.raises(UsageError, match=r"found no val split beside train"):
        quick_fit(data, tmp_path / "run", **{setting: value})


def test_fit_run__finds_cheap_mistakes_first(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any picture is opened."""
    monkeypatch.setattr("train.run.prepare_data", lambda *_: pytest.fail("pictures were looked at"))
    (tmp_path / "file").write_text("x")
    cases: list[tuple[Path, FitOptions, dict[str, object], str]] = [
        (tmp_path / "file", QUIET, {}, "found a file, expected a folder"),
        (tmp_path / "file" / "run", QUIET, {}, "found a file, expected a folder"),
        (tmp_path / "run", QUIET, {"backbone": "ViT-B-31"}, "nearest: ViT-B-32"),
        (tmp_path / "run", FitOptions(captions="x.json"), {"recipe": "lora"}, "reads none; leave it out"),
        (tmp_path / "run", FitOptions(resume=True, overwrite=True), {}, "found both"),
        (tmp_path / "run", FitOptions(overfit_steps=1), {}, "expected 2 or more"),
        (tmp_path / "run", FitOptions(limit=1), {}, "--limit: found 1"),
    ]
    for run, options, settings, message in cases:
        with pytest.raises(UsageError, match=message):
            quick_fit(data_set, run, options, **settings)


def test_fit_run__resumes_only_what_it_was(data_set: Path, tmp_path: Path) -> None:
    data, run = small_data_set(data_set, tmp_path / "data"), tmp_path / "run"
    resume = FitOptions(resume=True, tensorboard=False)
    config = TrainConfig(backbone="dgsnet-tiny-p32", pretrained="random", recipe="linear")
    assert fit_run(data, run, config, resume) is not None  # nothing there: it begins
    assert fit_run(data, run, config, resume) is None  # finished
    assert fit_run(data, run, config.with_value("data.workers", 0), resume) is None
    with pytest.raises(CheckpointError, match=r"recipe was 'linear' when the run began and is 'lora' now"):
        fit_run(data, run, config.with_value("recipe", "lora"), resume)
    picture = data / "train/blur/0_real/000.png"
    content = np.asarray(Image.open(picture)).copy()
    content[0, 0] ^= 1
    Image.fromarray(content).save(picture)
    with pytest.raises(CheckpointError, match="data set, fingerprint was"):
        fit_run(data, run, config, resume)


def test_fit_run__limit_keeps_both_labels(data_set: Path, tmp_path: Path) -> None:
    options = FitOptions(dry_run=True, limit=5)
    summary = quick_fit(data_set, tmp_path / "run", options)
    assert (summary.train_samples, summary.val_samples) == (5, 5)
    assert summary.val == str(data_set / "val")
    assert [forecast.stage for forecast in summary.forecast] == [1, 2]


def test_fit_run__keeps_the_best_and_the_last(data_set: Path, tmp_path: Path) -> None:
    """Nine validations: the copies are whole runs, and the run's checkpoint is the best of them."""
    settings = {
        "recipe": "lora",
        "data.batch": 8,
        "optim.lr": 0.05,  # far too high, so that the last validation is not the best
        "lora.dropout": 0,
        "schedule.stage2_epochs": 3,
        "schedule.validate_every": 1,
        "schedule.keep": "best",
        "schedule.keep_last": 2,
        "schedule.metric": "loss",
    }
    summary = quick_fit(data_set, tmp_path / "run", **settings)
    logs = (tmp_path / "run/logs/steps.jsonl").read_text().splitlines()
    losses = [record["val_loss"] for record in map(json.loads, logs) if "val_loss" in record]
    best = losses.index(min(losses)) + 1
    assert len(losses) == summary.steps == 9
    assert summary.best == min(losses)
    assert best < 9
    kept = sorted(folder.name for folder in (tmp_path / "run/kept").iterdir())
    assert kept == [f"step-{step:08d}" for step in sorted({best, 8, 9})]
    assert (tmp_path / "run/best").resolve().name == f"step-{best:08d}"
    whole, copy = load_checkpoint(tmp_path / "run"), load_checkpoint(tmp_path / "run/best")
    assert whole.weights_sha256 == copy.weights_sha256
    assert load_checkpoint(tmp_path / "run/kept" / kept[-1]).weights_sha256 != whole.weights_sha256


@pytest.mark.parametrize("keep", ["last", "best"])
def test_fit_run__scores_the_weights_that_it_keeps(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    """The AP of the summary is that of the checkpoint, and the last weights are scored once."""
    real, calls = trainer.validation_logits, []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(trainer, "validation_logits", counted)
    settings = {"recipe": "lora", "data.batch": 8, "optim.lr": 0.05, "schedule.validate_every": 1}
    metric = {"schedule.keep": keep, "schedule.metric": "loss", "schedule.stage2_epochs": 3}
    summary = quick_fit(data_set, tmp_path / "run", **settings, **metric)
    samples = find_samples(data_set / "val")
    logits = score_samples(load_checkpoint(tmp_path / "run"), samples, "cpu", title="test")
    assert summary.val_ap == average_precision(np.array([s.label for s in samples]), logits)
    logs = (tmp_path / "run/logs/steps.jsonl").read_text().splitlines()
    losses = [record["val_loss"] for record in map(json.loads, logs) if "val_loss" in record]
    is_last_kept = keep == "last" or min(losses) == losses[-1]
    assert len(calls) == len(losses) + (not is_last_kept)


def test_fit_run__ends_early(data_set: Path, tmp_path: Path) -> None:
    settings = {
        "recipe": "linear",
        "data.batch": 8,
        "optim.lr": 1e-12,  # nothing changes, so nothing gets better
        "schedule.stage1_epochs": 9,
        "schedule.patience": 2,
    }
    assert quick_fit(data_set, tmp_path / "run", **settings).steps == 3 * 3


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
