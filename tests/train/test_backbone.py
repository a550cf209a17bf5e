"""Backbones from open_clip: names, weights, activations, and which towers are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runtime.errors import DataError, UsageError
from train.model import backbone
from train.model.backbone import load_clip


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


@pytest.fixture
def odd_towers(tmp_path: Path) -> Iterator[None]:
    """Small models whose towers are built like those that the method does not fit."""
    import open_clip
    from open_clip import factory

    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    plain = {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32}
    towers = {
        "resnet": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "average": plain | {"pool_type": "avg"},
        "attentional": plain | {"attentional_pool": True, "attn_pooler_heads": 2},
        "tuples": plain | {"output_tokens": True},
        "custom": plain | {"block_type": "custom", "qk_norm": True},
        "larger": plain | {"image_size": 256},
        "tanh": plain | {"act_kwargs": {"approximate": "tanh"}},
        "fine": plain,
    }
    before = dict(factory._MODEL_CONFIGS), set(factory._MODEL_CONFIG_PATHS)
    for name, vision in towers.items():
        content = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
        (tmp_path / f"odd-{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(tmp_path)
    yield
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(before[0])
    factory._MODEL_CONFIG_PATHS[:] = [p for p in factory._MODEL_CONFIG_PATHS if p in before[1]]


@pytest.mark.usefixtures("odd_towers")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "a ModifiedResNet"),
        ("average", "avg pooling"),
        ("attentional", "attentional pooling"),
        ("tuples", "token outputs"),
        ("custom", "attention of type Attention"),
        ("larger", "a tower for 256 x 256 pixels"),
        ("tanh", "an activation GELU.*tanh"),
    ],
)
def test_load_clip__refuses_a_tower_that_cannot_be_exported(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"backbone odd-{name}: found {message}.*expected a plain vision"):
        load_clip(f"odd-{name}", "random", seed=0)
    assert load_clip("odd-fine", "random", seed=0)[1].embed_dim == 32


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pt", b"garbage"),
        ("a.pt", b""),
        ("a.safetensors", b"garbage of more than eight bytes"),
        ("a.safetensors", b""),
        ("tensor.pt", torch.zeros(3)),
        ("empty.pt", {}),
        ("numbers.pt", {"visual.proj": 5}),
        ("other.pt", {"visual.proj": torch.zeros(3, 3)}),
        ("a.npz", b"garbage"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_load_clip__names_a_weight_file_that_is_none(tmp_path: Path, name: str, content: object) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(DataError, match=rf"dgsnet-tiny-p32 with .*{name}: cannot be read") as caught:
        load_clip("dgsnet-tiny-p32", str(tmp_path / name), seed=0)
    assert "\n" not in str(caught.value)


def test_load_clip__says_which_activation_a_local_file_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights fit both, so that only the name decides; loading itself is cut short."""
    (tmp_path / "w.pt").write_bytes(b"x")
    told: list[str] = []
    monkeypatch.setattr(backbone.logger, "warning", lambda text, *facts: told.append(text % facts))
    for name in ("ViT-B-32-quickgelu", "dgsnet-tiny-p32", "ViT-B-32"):
        assert told == []
        with pytest.raises(DataError):
            load_clip(name, str(tmp_path / "w.pt"), seed=0)
    assert len(told) == 1
    assert "ViT-B-32 computes GELU, give --backbone ViT-B-32-quickgelu" in told[0]
