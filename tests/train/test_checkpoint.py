"""What a run writes, and what is refused when it is read back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import CheckpointError
from train.checkpoint import load_checkpoint, save_checkpoint
from train.loop.resume import check_identity
from train.model.lora import lora_state
from train.record import read_record, write_record


def test_load_checkpoint__gives_back_the_trained_model(run_folder: Path) -> None:
    checkpoint = load_checkpoint(run_folder)
    state = load_file(run_folder / "checkpoint.safetensors")
    assert torch.equal(checkpoint.model.head_image.weight, state["head_image.weight"])
    assert not checkpoint.model.training


def corrupted(run: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(run / "checkpoint.safetensors")
    change(tensors)
    target.mkdir()
    save_file(tensors, target / "checkpoint.safetensors")
    digest = hashlib.sha256((target / "checkpoint.safetensors").read_bytes()).hexdigest()
    write_record(target, read_record(run) | {"weights_sha256": digest})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["lora.1.k.a"].fill_(float("nan")), r"lora\.1\.k\.a holds NaN"),
        (lambda t: t.pop("lora.1.k.a"), "missing or unknown tensors"),
        (lambda t: t.pop("head_image.bias"), r"head_image\.bias is missing"),
        (lambda t: t.pop("base.conv1.weight"), "missing or unknown base tensors"),
        (lambda t: t["base.conv1.weight"].mul_(1.5), "not those it was trained on"),
    ],
    ids=["nan", "no-lora", "no-head", "no-base", "other-base"],
)
def test_load_checkpoint__names_what_is_wrong(
    run_folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(corrupted(run_folder, tmp_path / "run", change))


def test_load_checkpoint__refuses_a_flipped_byte(run_folder: Path, tmp_path: Path) -> None:
    for name in ("checkpoint.safetensors", "checkpoint.json"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    content = bytearray((tmp_path / "checkpoint.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_checkpoint(tmp_path)


def edited(run: Path, target: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool) -> Path:
    """Copies a run with a changed record: behind the digest's back, or with a digest that fits it."""
    target.mkdir()
    shutil.copy(run / "checkpoint.safetensors", target)
    record = json.loads((run / "checkpoint.json").read_text())
    change(record)
    if sealed:
        write_record(target, record)
    else:
        (target / "checkpoint.json").write_text(json.dumps(record))
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["config"]["lora"].update(alpha=60.0),
        lambda r: r["config"].update(seed=8),
        lambda r: r["decision"].update(threshold=0.9),
        lambda r: r["decision"].update(threshold=float("nan")),
        lambda r: r.update(extra=1),
        lambda r: r.pop("data"),
        lambda r: r.pop("digest"),
        lambda r: r.update(digest=5),
    ],
    ids=["alpha", "seed", "threshold", "nan", "added", "removed", "no-digest", "odd-digest"],
)
def test_read_record__refuses_a_changed_record(
    run_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    run = edited(run_folder, tmp_path / "run", change, sealed=False)
    with pytest.raises(CheckpointError, match=r"changed or damaged|not a run's checkpoint"):
        read_record(run)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "nothing there"),
        (lambda path: path.write_bytes(b"onnx"), r"a file \(.onnx\)"),
        (lambda path: path.mkdir(), "another folder"),
        (lambda path: (path / "resume").mkdir(parents=True), "a run that has saved no checkpoint yet"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{}")), "a bundle"),
    ],
    ids=["nothing", "file", "folder", "unfinished", "bundle"],
)
def test_read_record__says_what_it_found_instead_of_a_run(
    tmp_path: Path, make: Callable[[Path], object], found: str
) -> None:
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(CheckpointError, match=f"model.onnx: found {found}.*expected the folder") as caught:
        read_record(path)
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "5", "{}", '{"schema": 1}', '{"schema": 2}', "[" * 100_000])
def test_read_record__refuses_what_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"]["lora"].update(alpha=60.0), "lora: found"),
        (lambda r: r["lora"].update(scale=1.0), "lora: found"),
        (lambda r: r["lora"].update(scaling="lora"), "lora: found"),
        (lambda r: r.update(lora=5), "lora: found 5"),
        (lambda r: r.update(classes=["generated", "real"]), "classes: found"),
        (lambda r: r.update(merged=True), "merged weights"),
        (lambda r: r.update(config={}), "expected every key"),
        (lambda r: r.update(config=5), "expected every key"),
        (lambda r: r["config"].pop("lora"), r"lora\.alpha.* missing"),
        (lambda r: r["config"].update(foo=1), "'foo' is unknown"),
        (lambda r: r["config"]["lora"].update(targets=5), r"lora\.targets"),
        (lambda r: r["config"]["lora"].update(targets=["q"]), "unknown tensors"),
        (lambda r: r["backbone"].update(name=5), r"backbone\.name: found 5, expected str"),
        (lambda r: r["backbone"].update(pretrained=5), r"backbone\.pretrained: found 5"),
        (lambda r: r["backbone"].update(embed_dim=True), r"backbone\.embed_dim: found True"),
        (lambda r: r["backbone"].update(embed_dim=512), "built differently"),
        (lambda r: r.update(backbone=5), "backbone: found 5"),
        (lambda r: r["backbone"].update(name="ViT-L14"), r"backbone\.name: found 'ViT-L14', but"),
        (
            lambda r: (r["backbone"].update(name="ViT-L14"), r["config"].update(backbone="ViT-L14")),
            "cannot be built again .*unknown to open_clip",
        ),
        (lambda r: r.update(decision={"threshold": 0.5}), "malformed field"),
        (lambda r: r.pop("preprocessing"), "'preprocessing' is missing"),
    ],
)
def test_load_checkpoint__compares_what_the_record_says_twice(
    run_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Even where the digest was made to fit: another tool may write records."""
    run = edited(run_folder, tmp_path / "run", change, sealed=True)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(run)
    assert "\n" not in str(caught.value)


# What the first version of dgsnet wrote, beside what shapes the model: everything else came later.
FIRST_VERSION = {
    "surgery": ("order", "harm", "align", "align_reduction", "eps"),
    "data": ("batch", "workers", "cache_gib", "flip"),
    "optim": ("lr", "beta1", "beta2", "weight_decay"),
    "schedule": ("stage1_epochs", "stage2_epochs"),
}


def of_the_first_version(record: dict[str, Any]) -> None:
    for section, kept in FIRST_VERSION.items():
        record["config"][section] = {key: record["config"][section][key] for key in kept}
    del record["dgsnet"]


def test_load_checkpoint__reads_the_run_of_an_earlier_version_and_names_what_it_takes(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = edited(run_folder, tmp_path / "run", of_the_first_version, sealed=True)
    with caplog.at_level("WARNING", logger="dgsnet"):
        old, new = load_checkpoint(run), load_checkpoint(run_folder)
    (warning,) = [record.message for record in caplog.records if record.name == "dgsnet.train"]
    assert "written by an earlier dgsnet: " in warning
    assert "surgery.eps_batch, " in warning
    assert "data.jpeg, " in warning
    assert "text_head" not in warning
    assert "lora" not in warning
    assert "\n" not in warning
    mosaics = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    assert torch.equal(old.model(mosaics)[0], new.model(mosaics)[0])
    assert old.config.schedule.stage2_epochs == new.config.schedule.stage2_epochs


def test_load_checkpoint__says_which_version_wrote_a_setting_that_it_does_not_know(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def later(record: dict[str, Any]) -> None:
        record["config"]["data"]["newer"] = 5
        record["dgsnet"] = "9.8.7"

    with caplog.at_level("WARNING", logger="dgsnet"):
        load_checkpoint(edited(run_folder, tmp_path / "run", later, sealed=True))
    (warning,) = [record.message for record in caplog.records if record.name == "dgsnet.train"]
    assert "written by dgsnet 9.8.7: data.newer unknown here, passed over" in warning


def test_resume__of_another_versions_run_is_refused_in_one_line(run_folder: Path) -> None:
    identity = read_record(run_folder)["identity"]
    older = {key: value for key, value in identity.items() if not key.startswith(("data.", "schedule."))}
    with pytest.raises(
        CheckpointError, match="begun by another version of dgsnet, without the settings data"
    ) as caught:
        check_identity(run_folder, older, identity)
    assert " more; resume with that version, or start anew with --overwrite" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"does not say what it was made from.*--overwrite"):
        check_identity(run_folder, {}, identity)
    check_identity(run_folder, identity, identity)


def test_write_record__replaces_the_digest_and_takes_any_name(run_folder: Path, tmp_path: Path) -> None:
    record = read_record(run_folder)
    write_record(tmp_path, record | {"calibration": {"fpr": 0.05}})
    changed = read_record(tmp_path)
    assert changed["calibration"] == {"fpr": 0.05}
    assert changed["digest"] != record["digest"]
    assert list(changed)[-1] == "digest"
    write_record(tmp_path, record | {"name": os.fsdecode(b"caf\xe9")})
    assert read_record(tmp_path)["name"] == os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("place", ["head", "adapter", "base"])
def test_save_checkpoint__refuses_weights_that_are_not_finite(
    run_folder: Path, tmp_path: Path, place: str
) -> None:
    checkpoint = load_checkpoint(run_folder)
    model = checkpoint.model
    tensor = {
        "head": model.head_text.weight,
        "adapter": lora_state(model.visual)["lora.2.k.b"],
        "base": model.visual.conv1.weight,
    }[place]
    tensor.data.view(-1)[3] = float("inf")
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        save_checkpoint(tmp_path, model, checkpoint.config, checkpoint.backbone, {})
    assert list(tmp_path.iterdir()) == []
