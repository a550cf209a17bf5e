"""Tar shards: what is read from them, at random, and what is refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.decode import decode_image
from runtime.errors import DataError, ImageError
from train.data import shards
from train.data.layout import find_samples, fingerprint, read_sidecar
from train.data.shards import shard_members


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def packed(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    """Writes a shard whose modification time is old enough to be remembered."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    os.utime(path, (1e9, 1e9))
    return path


SMALL = {"a.png": picture(0), "a.cls": b"0", "b.png": picture(1), "b.cls": b"1\n"}


def test_find_samples__reads_shards_like_folders(tmp_path: Path) -> None:
    described = {"label": 1, "generator": "SDXL", "caption": "a red car"}
    packed(
        tmp_path / "train" / "mixed-000.tar",
        {
            "./0001.cls": b"0",
            "./0001.png": picture(1),
            "./0001.txt": "un café\n".encode(),
            "glide/0002.jpg.png": picture(2),
            "glide/0002.json": json.dumps(described | {"generator": ""}).encode(),
            ".hidden.png": picture(3),
            "readme": b"no sample",
            "stats.json": b"{}",
        },
    )
    packed(tmp_path / "train" / "x.tar", {"3.PNG": picture(3), "3.json": json.dumps(described).encode()})
    found = find_samples(tmp_path, "train")
    assert [(s.key, s.label, s.generator) for s in found] == [
        ("train/mixed-000.tar/0001.png", 0, "mixed"),
        ("train/mixed-000.tar/glide/0002.jpg.png", 1, "glide"),
        ("train/x.tar/3.PNG", 1, "SDXL"),
    ]
    for sample, seed in reversed(list(zip(found, (1, 2, 3), strict=True))):
        assert np.array_equal(decode_image(sample.source()), decode_image(picture(seed)))
        assert sample.byte_size() == len(picture(seed))
    assert [read_sidecar(s) for s in found] == ["un café", "a red car", "a red car"]
    assert read_sidecar(found[0], ".cls") == "0"
    assert len(fingerprint(found)) == 64


def test_shard_members__name_numbered_shards_after_their_folder(tmp_path: Path) -> None:
    assert {m.generator for m in shard_members(packed(tmp_path / "sdxl" / "00001.tar", SMALL))} == {"sdxl"}


def test_shard_members__remember_the_index_until_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = packed(tmp_path / "x.tar", SMALL)
    first = shard_members(shard)
    walked = []
    monkeypatch.setattr(shards.tarfile, "open", lambda **_: walked.append(1) or pytest.fail("walked"))
    assert shard_members(shard) == first
    assert not walked
    monkeypatch.undo()
    packed(shard, SMALL | {"a.cls": b"1"})
    os.utime(shard, (1e9, 1e9 + 1))
    assert [m.label for m in shard_members(shard)] == [1, 1]
    cached = shards._index_path(shard)
    cached.write_text('{"of": [')
    assert [m.label for m in shard_members(shard)] == [1, 1]
    cached.unlink()
    os.utime(shard)  # changed just now: looked at, not remembered
    shard_members(shard)
    assert not cached.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a.cls": b"2"}, r"x\.tar: a: found 2 as its label, expected 0 or 1 in a member a\.cls"),
        ({"a.cls": b"\xff"}, "as its label"),
        ({"a.json": b'{"label": 1}'}, "found 0 and 1 as its label"),
        ({"a.json": b'{"label": "0"}'}, '"label" to be 0 or 1'),
        ({"a.json": b'{"label": true}'}, '"label" to be 0 or 1'),
        ({"a.json": b'{"generator": 3}'}, '"generator", if any, to be a text'),
        ({"a.json": b"[0]"}, "found list, expected one JSON object"),
        ({"a.json": b"{"}, r"a\.json cannot be read as JSON"),
        ({"a.json": b"[" * 200_000}, r"a\.json cannot be read as JSON"),
        ({"a.json": b" " * (1 << 20) + b"{}"}, r"a\.json has 1048578 bytes, expected at most"),
        ({"a.jpg": b"x"}, "a has 2 pictures, expected one"),
        ({"c.cls": b"1"}, "c has 0 pictures, expected one"),
        ({"c.png": b"x"}, "c: found nothing as its label"),
    ],
)
def test_shard_members__refuse_samples_that_are_unclear(
    tmp_path: Path, changed: dict[str, bytes], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        shard_members(packed(tmp_path / "x.tar", SMALL | changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_shard_members__refuse_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("c.png\x1b")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(DataError, match=r"c\.png\\x1b is a link, a device") as caught:
        shard_members(packed(tmp_path / "x.tar", SMALL, info))
    assert "\x1b" not in str(caught.value)


def test_shard_members__refuse_what_is_damaged(tmp_path: Path) -> None:
    shard = packed(tmp_path / "x.tar", SMALL)
    content = shard.read_bytes()
    last = content.index(b"b.cls")
    claims = tarfile.TarInfo("c.png")
    claims.size = 1 << 40
    bad = {
        "cut in a picture": (content[:3000], "a.png reaches beyond the end of the file, which has 3000"),
        "cut in a header": (content[: last + 100], "damaged"),
        "damaged header": (content[:last] + b"\xff" + content[last + 1 :], f"damaged, or .* byte {last}"),
        "more after the end": (content + content, "more data after its end"),
        "too long a member": (content[: last + 1024] + claims.tobuf(), "c.png reaches beyond the end"),
        "empty": (b"", "not an uncompressed tar file"),
        "no tar": (picture(0) * 20, "not an uncompressed tar file"),
        "gzip": (b"\x1f\x8b" + content, "not an uncompressed tar file"),
    }
    for name, (damaged, message) in bad.items():
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"x\.tar: .*{message}.* again") as caught:
            shard_members(shard)
        assert "\n" not in str(caught.value), name
    shard.write_bytes(content[: last + 1024])  # without the two empty blocks at the end, as some writers do
    assert len(shard_members(shard)) == 2


def test_shard_members__write_nothing_beside_the_shard(tmp_path: Path) -> None:
    packed(tmp_path / "d" / "x.tar", SMALL | {"../../out.png": picture(2), "../../out.cls": b"1"})
    found = find_samples(tmp_path / "d")
    assert [s.source() for s in found][2] == picture(2)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["d", "x.tar"]


def test_source__says_when_the_shard_has_changed_or_gone(tmp_path: Path) -> None:
    shard = packed(tmp_path / "x.tar", SMALL)
    sample = find_samples(tmp_path)[1]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ImageError, match="shorter than when it was indexed"):
        sample.source()
    shard.unlink()
    with pytest.raises(ImageError, match=r"x\.tar: cannot be read"):
        sample.source()
    with pytest.raises(DataError, match="cannot be read"):
        read_sidecar(sample, ".cls")
