"""UnivFD's linear head, in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from runtime.errors import CheckpointError, UsageError
from train.checkpoint import load_checkpoint, read_record
from train.commands.import_official import import_official as import_command
from train.model.backbone import load_clip
from train.official.exporting import export_official
from train.official.importing import import_official

NAME, EMBED = "univfd-small", 32


@pytest.fixture(scope="module", autouse=True)
def _small_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Registers a small CLIP with QuickGELU, and takes it off again."""
    import open_clip
    from open_clip import factory

    folder = tmp_path_factory.mktemp("models")
    vision = {"image_size": 224, "layers": 1, "width": 64, "patch_size": 56}
    text = {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
    content = {"embed_dim": EMBED, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    before = dict(factory._MODEL_CONFIGS), list(factory._MODEL_CONFIG_PATHS)
    (folder / f"{NAME}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(before[0])
    factory._MODEL_CONFIG_PATHS[:] = before[1]


def head() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {
        "weight": torch.randn(1, EMBED, generator=draw), "bias": torch.randn(1, generator=draw)
    }  # fmt: skip


@pytest.fixture
def fc_weights(tmp_path: Path) -> Path:
    torch.save(head(), tmp_path / "fc_weights.pth")
    return tmp_path / "fc_weights.pth"


def test_import_official__makes_a_linear_run_of_univfds_head(fc_weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    import_official(fc_weights, run, backbone=NAME, pretrained="random", as_mosaic_head=True)
    checkpoint = load_checkpoint(run)
    images = torch.randint(0, 256, (3, 224, 224, 3), generator=torch.Generator().manual_seed(1)).byte()
    with torch.inference_mode():
        logits, _ = checkpoint.model(images)
        scaled = images.permute(0, 3, 1, 2) / 255
        mean, std = checkpoint.model.mean, checkpoint.model.std
        feature = load_clip(NAME, "random", seed=100)[0].encode_image((scaled - mean) / std)
    expected = (feature @ head()["weight"].T + head()["bias"]).squeeze(1)
    assert torch.allclose(logits, expected, atol=1e-5)
    record = read_record(run)["data"]["imported"]
    assert "does not carry over" in record["note"]
    assert record["format"] == "univfd"
    export_official(run, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert set(again) == {"weight", "bias"}
    assert all(torch.equal(again[name], tensor) for name, tensor in head().items())
    with pytest.raises(UsageError, match="leave --merged and --pretrained out"):
        export_official(run, tmp_path / "merged.pth", merged=True)


def test_import_official__needs_a_flag_for_a_head_of_other_features(fc_weights: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(import_command, [str(fc_weights), "-o", str(tmp_path / "run")])
    assert isinstance(result.exception, UsageError)
    assert "centre crops" in str(result.exception)
    assert "--as-mosaic-head" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_import_official__refuses_what_does_not_fit_univfds_head(fc_weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="computes GELU, expected the QuickGELU"):
        import_official(fc_weights, run, backbone="dgsnet-tiny-p32", pretrained="random", as_mosaic_head=True)
    with pytest.raises(UsageError, match=r"--alpha: does not apply, fc_weights.pth is a head"):
        import_official(fc_weights, run, alpha=6.0, as_mosaic_head=True)
    for content, message in (
        ({"weight": torch.zeros(2, EMBED), "bias": torch.zeros(1)}, r"weight: found shape \[2, 32\]"),
        ({"weight": torch.full((1, EMBED), torch.nan), "bias": torch.zeros(1)}, "holds NaN"),
    ):
        torch.save(content, fc_weights)
        with pytest.raises(CheckpointError, match=message):
            import_official(fc_weights, run, backbone=NAME, pretrained="random", as_mosaic_head=True)
