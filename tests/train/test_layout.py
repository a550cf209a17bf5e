"""Finding the samples of a data set and their captions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runtime.errors import DataError
from runtime.scan import SUFFIXES
from train.data.captions import load_captions
from train.data.layout import find_samples, fingerprint


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
        ("b/real/2.png", "b: found no label folder inside"),
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
