"""Text features: frozen, computed once, kept in a cache that proves itself, free of the text tower."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import SpecError
from train.model.backbone import load_clip, tokenizer
from train.model.text_features import CACHE_NAME, cached_text_features, encode_captions, features_key

TINY = "dgsnet-tiny-p32"
CAPTIONS = ["a photo of a car", "a photo", "a red kite above a hill", "a photo of a car", "a photo"]


@pytest.fixture
def clip() -> Any:
    return load_clip(TINY, "random", seed=5)[0]


@pytest.fixture
def encoded_texts(clip: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the model's text encoder got."""
    counts: list[int] = []
    encode: Callable[..., Any] = clip.encode_text

    def counted(tokens: torch.Tensor) -> Any:
        counts.append(len(tokens))
        return encode(tokens)

    monkeypatch.setattr(clip, "encode_text", counted)
    return counts


def test_encode_captions__is_the_model_s_own_text_feature(clip: Any) -> None:
    features = encode_captions(clip, TINY, CAPTIONS, "cpu")
    with torch.no_grad():
        one_by_one = torch.cat([clip.encode_text(tokenizer(TINY)([text])) for text in CAPTIONS])
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, one_by_one, rtol=0, atol=1e-5)
    # Not normalised: the text head sees what the tower gives.
    assert (features.norm(dim=1) - 1).abs().min() > 1e-3


def test_encode_captions__follows_the_order_of_the_captions_exactly(clip: Any) -> None:
    features = encode_captions(clip, TINY, CAPTIONS, "cpu")
    order = [3, 0, 4, 2, 1]
    shuffled = encode_captions(clip, TINY, [CAPTIONS[i] for i in order], "cpu")
    assert torch.equal(shuffled, features[order])


def test_encode_captions__encodes_equal_captions_once(clip: Any, encoded_texts: list[int]) -> None:
    encode_captions(clip, TINY, CAPTIONS * 100, "cpu")
    assert encoded_texts == [3]


def test_encode_captions__stays_fp32_inside_autocast(clip: Any) -> None:
    plain = encode_captions(clip, TINY, CAPTIONS, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encode_captions(clip, TINY, CAPTIONS, "cpu"), plain)


def test_encode_captions__freezes_the_text_tower(clip: Any) -> None:
    assert clip.text_projection.requires_grad
    features = encode_captions(clip, TINY, CAPTIONS, "cpu")
    assert not features.requires_grad
    assert not any(p.requires_grad for n, p in clip.named_parameters() if not n.startswith("visual."))
    assert all(p.requires_grad for p in clip.visual.parameters())


def test_encode_captions__refuses_a_text_tower_that_a_loss_has_reached(clip: Any) -> None:
    clip.encode_text(tokenizer(TINY)(CAPTIONS)).sum().backward()
    with pytest.raises(SpecError, match=r"with a gradient.*expected frozen"):
        encode_captions(clip, TINY, CAPTIONS, "cpu")


def test_encode_captions__refuses_half_precision(clip: Any) -> None:
    with pytest.raises(SpecError, match=r"bfloat16.*float32"):
        encode_captions(clip.bfloat16(), TINY, CAPTIONS, "cpu")


def test_cached_text_features__are_read_back_bit_by_bit(
    clip: Any, encoded_texts: list[int], tmp_path: Path
) -> None:
    path = tmp_path / CACHE_NAME
    first = cached_text_features(path, clip, TINY, CAPTIONS, "cpu")
    again = cached_text_features(path, clip, TINY, CAPTIONS, "cpu")
    assert encoded_texts == [3]
    assert len(again) == len(CAPTIONS)
    assert again.rows.shape == (3, clip.visual.output_dim)
    assert torch.equal(again[:], first[:])
    assert torch.equal(again[:], encode_captions(clip, TINY, CAPTIONS, "cpu"))
    batch = torch.tensor([4, 1])
    assert torch.equal(again[batch], first[:][batch])


def test_features_key__names_everything_that_the_features_follow_from(clip: Any) -> None:
    key = features_key(clip, TINY, CAPTIONS)
    assert key == features_key(load_clip(TINY, "random", seed=5)[0], TINY, CAPTIONS)
    assert key != features_key(clip, "another-name", CAPTIONS)
    assert key != features_key(clip, TINY, CAPTIONS[::-1])
    assert key != features_key(clip, TINY, [CAPTIONS[0] + CAPTIONS[1], *CAPTIONS[2:]])
    with torch.no_grad():
        clip.visual.proj.add_(1)  # the vision tower has no part in it
        assert key == features_key(clip, TINY, CAPTIONS)
        clip.ln_final.bias[0] += 1e-6
    assert key != features_key(clip, TINY, CAPTIONS)


def test_features_key__tells_activations_apart_that_no_weight_shows(clip: Any) -> None:
    import open_clip

    quick = open_clip.create_model(TINY, force_quick_gelu=True)
    quick.load_state_dict(clip.state_dict())
    assert features_key(clip, TINY, CAPTIONS) != features_key(quick, TINY, CAPTIONS)


def flip_a_bit(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def flip_a_feature(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-4], lambda content: b"", flip_a_bit, flip_a_feature],
    ids=["cut", "empty", "index", "feature"],
)
def test_cached_text_features__replaces_a_damaged_file_and_says_so(
    clip: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(logging.getLogger("dgsnet"), "propagate", True)
    path = tmp_path / CACHE_NAME
    expected = cached_text_features(path, clip, TINY, CAPTIONS, "cpu")
    path.write_bytes(damage(path.read_bytes()))
    again = cached_text_features(path, clip, TINY, CAPTIONS, "cpu")
    assert torch.equal(again[:], expected[:])
    assert "damaged" in caplog.text
    caplog.clear()
    cached_text_features(path, clip, TINY, CAPTIONS, "cpu")
    assert "damaged" not in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == [CACHE_NAME]


def test_cached_text_features__replaces_a_file_of_other_captions(
    clip: Any, encoded_texts: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(logging.getLogger("dgsnet"), "propagate", True)
    path = tmp_path / CACHE_NAME
    cached_text_features(path, clip, TINY, CAPTIONS, "cpu")
    other = cached_text_features(path, clip, TINY, CAPTIONS[::-1], "cpu")
    assert "other weights or captions" in caplog.text
    assert encoded_texts == [3, 3]
    assert torch.equal(other[:], encode_captions(clip, TINY, CAPTIONS[::-1], "cpu"))


def test_cached_text_features__let_the_text_tower_leave_memory(tmp_path: Path) -> None:
    clip = load_clip(TINY, "random", seed=5)[0]
    tower, table = weakref.ref(clip.transformer), weakref.ref(clip.token_embedding.weight)
    visual = clip.visual
    features = cached_text_features(tmp_path / CACHE_NAME, clip, TINY, CAPTIONS, "cpu")
    del clip
    gc.collect()
    assert tower() is None
    assert table() is None
    assert visual.proj is not None
    assert features[:].isfinite().all()
