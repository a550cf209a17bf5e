"""Finding the samples of a data set and their captions."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from runtime.errors import DataError
from runtime.pictures.scan import SUFFIXES
from train.data.captions import load_captions
from train.data.layout import find_samples, fingerprint, has_split, read_sidecar


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


def placed(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


COMPLETE = ("a/0_real/1.png", "a/1_fake/1.png")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "progan/airplane/0_real/2.png",
            r"progan/airplane/0_real: a label folder too deep .*/progan/airplane up",
        ),
        ("a/b/1_fake/2.png", "a/b/1_fake: a label folder too deep"),
        ("b/photos/2.png", "b: found no label folder inside"),
        ("a/0_real/more/2.png", "a/0_real/more: a folder inside a label folder"),
    ],
)
def test_find_samples__refuses_what_it_would_drop(tmp_path: Path, more: str, message: str) -> None:
    find_samples(placed(tmp_path, *COMPLETE))
    with pytest.raises(DataError, match=message) as caught:
        find_samples(placed(tmp_path, more))
    assert "<class>/0_real and <class>/1_fake" in str(caught.value)


def test_find_samples__takes_every_suffix_of_the_runtime_and_nothing_hidden(tmp_path: Path) -> None:
    pictures = [f"a/0_real/{index}{suffix}" for index, suffix in enumerate(sorted(SUFFIXES))]
    hidden = ("a/0_real/.x.png", ".git/0_real/x/1.png", "a/.thumbs/1_fake/1.png", "a/1_fake/.t/1.png")
    placed(tmp_path, *COMPLETE, *pictures, *hidden, "a/0_real/UPPER.GIF", "a/0_real/notes.txt", "readme.md")
    found = [sample.key for sample in find_samples(tmp_path)]
    assert set(found) == {*COMPLETE, *pictures, "a/0_real/UPPER.GIF"}


def test_fingerprint__changes_with_key_label_and_size_and_takes_any_name(tmp_path: Path) -> None:
    placed(tmp_path, *COMPLETE)
    seen = {fingerprint(find_samples(tmp_path))}
    (tmp_path / "a/0_real/1.png").write_bytes(b"x")
    seen.add(fingerprint(find_samples(tmp_path)))
    (tmp_path / "a/0_real/1.png").rename(tmp_path / "a/0_real/2.png")
    seen.add(fingerprint(find_samples(tmp_path)))
    (tmp_path / "a/0_real/2.png").rename(tmp_path / "a/0_real" / os.fsdecode(b"caf\xe9.png"))
    seen.add(fingerprint(find_samples(tmp_path)))
    assert len(seen) == 4
    assert find_samples(tmp_path)[0].name == "a/0_real/caf\ufffd.png"


@pytest.mark.parametrize("names", [("0_real", "1_fake"), ("real", "fake")])
@pytest.mark.parametrize("split", ["train", None])
def test_find_samples__reads_plain_folders(tmp_path: Path, names: tuple[str, str], split: str | None) -> None:
    prefix = f"{split}/" if split else ""
    placed(tmp_path / "cars", *(f"{prefix}{name}/1.png" for name in names))
    found = find_samples(tmp_path / "cars", split)
    assert [(s.key, s.label, s.generator) for s in found] == [
        (f"{prefix}{name}/1.png", label, split or "cars") for label, name in enumerate(names)
    ]
    assert all(sample.path == tmp_path / "cars" / sample.key for sample in found)


def test_find_samples__refuses_classes_with_one_label_or_none(tmp_path: Path) -> None:
    placed(tmp_path, *COMPLETE)
    (tmp_path / "b" / "0_real").mkdir(parents=True)
    with pytest.raises(DataError, match="b: found no pictures"):
        find_samples(tmp_path)
    placed(tmp_path, "b/0_real/1.png")
    with pytest.raises(DataError, match="b: found pictures of label 0 only"):
        find_samples(tmp_path)


def test_find_samples__refuses_mixed_layouts(tmp_path: Path) -> None:
    placed(tmp_path, "real/1.png", "fake/1.png", "cars/real/1.png")
    with pytest.raises(DataError, match="found fake beside cars, expected label folders only"):
        find_samples(tmp_path)
    placed(tmp_path / "s", *COMPLETE, "x.tar")
    with pytest.raises(DataError, match=r"found shards \(x\.tar\) and folders \(a\)"):
        find_samples(tmp_path / "s")


def test_find_samples__takes_the_split_folder_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dgsnet"), "propagate", True)
    placed(tmp_path / "train", *COMPLETE)
    placed(tmp_path / "val", *COMPLETE)
    usual = {split: find_samples(tmp_path, split) for split in ("train", "val")}
    caplog.set_level(logging.INFO, "dgsnet")
    assert not caplog.messages
    assert find_samples(tmp_path / "train", "train") == usual["train"]
    assert "has no folder train: reading" in caplog.text
    # Beside the folder "train" that was given lies the val of the same data set.
    assert find_samples(tmp_path / "train", "val") == usual["val"]
    assert [s.key for s in find_samples(tmp_path / "val", "val")] == [s.key for s in usual["val"]]
    monkeypatch.chdir(tmp_path / "train")
    for root in (Path(), Path("../train"), Path("../train/")):
        assert [s.key for s in find_samples(root, "train")] == [s.key for s in usual["train"]]
        assert has_split(root, "val")
    with pytest.raises(DataError, match="test: not a folder"):
        find_samples(tmp_path / "train", "test")


def test_find_samples__takes_a_root_of_any_name_as_train_only(tmp_path: Path) -> None:
    root = placed(tmp_path / "pictures", *COMPLETE)
    assert [sample.key for sample in find_samples(root, "train")] == list(COMPLETE)
    assert not has_split(root, "val")
    with pytest.raises(DataError, match="val: not a folder"):
        find_samples(root, "val")
    plain = placed(tmp_path / "plain", "real/1.png", "fake/1.png")
    assert {sample.generator for sample in find_samples(plain, "train")} == {"plain"}


def test_read_sidecar__reads_texts_beside_pictures(tmp_path: Path) -> None:
    placed(tmp_path, *COMPLETE)
    real, fake = find_samples(tmp_path)
    assert read_sidecar(real) is None
    (tmp_path / "a/0_real/1.json").write_text('{"caption": " from json "}')
    assert read_sidecar(real) == "from json"
    (tmp_path / "a/0_real/1.txt").write_text("a caf\u00e9\n", encoding="utf-8")
    assert read_sidecar(real) == "a caf\u00e9"
    assert read_sidecar(real, ".caption") == "from json"
    for content, message in (
        (b"\xff\xfe", "cannot be read as text"),
        (b"x" * (1 << 20) + b"x", "is over 1048576 bytes"),
    ):
        (tmp_path / "a/1_fake/1.txt").write_bytes(content)
        with pytest.raises(DataError, match=f"^a/1_fake/1.png: its .*{message}"):
            read_sidecar(fake)
    (tmp_path / "a/1_fake/1.txt").unlink()
    (tmp_path / "a/1_fake/1.json").write_text('{"label": 1}')
    assert read_sidecar(fake) is None
    for content in ("{", '{"caption": 3}', '["a"]'):
        (tmp_path / "a/1_fake/1.json").write_text(content)
        with pytest.raises(DataError, match=r"^a/1_fake/1\.png: "):
            read_sidecar(fake)
