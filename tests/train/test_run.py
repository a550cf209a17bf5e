"""A whole small run: checkpoint layout, reproducibility, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import CheckpointError, DataError, UsageError
from train.backbone import load_clip
from train.checkpoint import load_checkpoint, read_record, write_record
from train.config import TrainConfig, config_from_toml
from train.data.captions import load_captions
from train.data.layout import find_samples
from train.data.mosaics import MosaicSet
from train.run import fit_run


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


def test_load_checkpoint__gives_back_the_trained_model(run_folder: Path) -> None:
    checkpoint = load_checkpoint(run_folder)
    state = load_file(run_folder / "checkpoint.safetensors")
    assert torch.equal(checkpoint.model.head_image.weight, state["head_image.weight"])
    assert not checkpoint.model.training


def corrupted(run: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    import hashlib

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


def test_load_clip__names_the_nearest_backbones() -> None:
    with pytest.raises(UsageError, match="ViT-L-14"):
        load_clip("ViT-L14", "random", seed=0)
    with pytest.raises(UsageError, match="tags:"):
        load_clip("ViT-B-32", "no-such-tag", seed=0)


def test_load_clip__reads_a_local_file_and_stores_its_weights(tmp_path: Path) -> None:
    clip, info = load_clip("dgsnet-tiny-p32", "random", seed=3)
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    again, from_file = load_clip("dgsnet-tiny-p32", str(tmp_path / "weights.pt"), seed=4)
    assert from_file.sha256 == info.sha256
    assert from_file.pretrained == "file:weights.pt"
    assert not from_file.is_on_hub
    assert torch.equal(again.visual.proj, clip.visual.proj)


def test_load_clip__follows_the_tag_in_the_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights in a model whose name says GELU are still run with QuickGELU."""
    import open_clip

    seen = {}

    def fake(name: str, **arguments: object) -> object:
        seen.update(arguments)
        raise RuntimeError("stop here")  # the weights cannot be downloaded in a test

    monkeypatch.setattr(open_clip, "create_model", fake)
    with pytest.raises(DataError, match="stop here"):
        load_clip("ViT-L-14", "openai", seed=0)
    assert seen["force_quick_gelu"] is True


def test_mosaics__draws_do_not_depend_on_workers_or_cache(data_set: Path) -> None:
    samples = find_samples(data_set, "train")
    base = TrainConfig().with_value("data.batch", 5)
    in_memory = MosaicSet(samples, base.data, seed=3, title="test")
    in_workers = MosaicSet(samples, base.with_value("data.cache_gib", 0).data, seed=3, title="test")
    for epoch in (-1, 0, 1):
        for (a, i), (b, j) in zip(in_memory.batches(epoch), in_workers.batches(epoch), strict=True):
            assert torch.equal(i, j)
            assert torch.equal(a, b)
    first, second = (next(iter(in_memory.batches(epoch)))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_mosaics__inference_equals_the_runtime(data_set: Path) -> None:
    from runtime.decode import decode_image
    from runtime.patches import select_patches

    samples = find_samples(data_set, "val")
    images, _ = next(iter(MosaicSet(samples, TrainConfig().data, seed=0, title="test").batches(-1)))
    assert np.array_equal(images[2].numpy(), select_patches(decode_image(samples[2].path)))


def test_find_samples__refuses_one_label_and_no_pictures(data_set: Path, tmp_path: Path) -> None:
    assert {s.label for s in find_samples(data_set, "train")} == {0, 1}
    with pytest.raises(DataError, match="not a folder"):
        find_samples(tmp_path, "train")
    (tmp_path / "a" / "0_real").mkdir(parents=True)
    with pytest.raises(DataError, match="no pictures"):
        find_samples(tmp_path)
    (tmp_path / "a" / "0_real" / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="label 0 only"):
        find_samples(tmp_path)


def test_load_captions__counts_what_is_missing(data_set: Path, tmp_path: Path) -> None:
    samples = find_samples(data_set, "train")
    (tmp_path / "c.json").write_text(json.dumps({s.key: "x" for s in samples[3:]}))
    with pytest.raises(DataError, match=f"3 of {len(samples)} samples, first {samples[0].key}"):
        load_captions(tmp_path / "c.json", samples)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora.rank", "3", "lora.rank' is unknown; there are: .*lora.r,"),
        ("lora.r", "many", "lora.r: found 'many', expected int"),
        ("lora.r", "0", "lora.r: found 0, expected 1 to"),
        ("surgery.order", "first", "surgery.order: found 'first'"),
        ("data.flip", "maybe", "data.flip: found 'maybe'"),
        ("lora.targets", "q,o", "lora.targets"),
        ("lora", "3", "unknown"),
    ],
)
def test_config__refuses_with_the_key_in_the_message(key: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig().with_value(key, value)


def test_config__survives_json_and_toml(tmp_path: Path) -> None:
    config = (
        TrainConfig()
        .with_value("lora.targets", "q,v")
        .with_value("optim.lr", "0.5")
        .with_value("data.flip", "false")
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    (tmp_path / "a.toml").write_text('seed = 9\n[lora]\nr = 8\ntargets = ["k"]\n')
    read = config_from_toml(tmp_path / "a.toml")
    assert (read.seed, read.lora.r, read.lora.targets) == (9, 8, ("k",))
