"""A part of the pictures: every group by its share, the same ones each time, and said wherever it counts."""

from __future__ import annotations

import json
import random
import shutil
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.parity.gate import GateOptions, bundle_gate
from export.parity.pictures.data_set import Picture
from export.parity.pictures.reading import Reading, Sample
from export.parity.pictures.sampling import pictures_to_read, sampled


def listed(sizes: dict[tuple[str, int], int]) -> list[Picture]:
    return [
        Picture(f"{generator}/{label}/{k}.png", label, generator, None)
        for (generator, label), size in sizes.items()
        for k in range(size)
    ]


def groups(pictures: list[Picture]) -> Counter[tuple[str, int]]:
    return Counter((picture.generator, picture.label) for picture in pictures)


def test_sampled__gives_each_generator_and_label_its_share() -> None:
    sizes = {("sd", 0): 600, ("sd", 1): 300, ("gan", 0): 90, ("gan", 1): 9, ("rare", -1): 1}
    taken = groups(sampled(listed(sizes), 100))
    assert taken.total() == 100
    assert taken["rare", -1] == 1
    assert taken["gan", 1] == 1
    for key, size in sizes.items():
        assert abs(taken[key] - size / 10) <= 1


def test_sampled__does_not_care_for_the_order_of_the_folder() -> None:
    pictures = listed({("a", 0): 50, ("a", 1): 50})
    turned = random.Random(5).sample(pictures, len(pictures))
    assert {p.name for p in sampled(pictures, 20)} == {p.name for p in sampled(turned, 20)}


def test_sampled__keeps_order_and_depends_on_the_seed() -> None:
    pictures = listed({("a", 0): 200})
    first, other = sampled(pictures, 20), sampled(pictures, 20, seed=1)
    assert first == sorted(first, key=pictures.index)
    assert first != other
    # Not the first of the folder: a hash decides.
    assert first != pictures[:20]


def test_sampled__a_new_picture_changes_at_most_one() -> None:
    pictures = listed({("a", 0): 200})
    more = [*pictures, Picture("a/0/new.png", 0, "a", None)]
    before, after = ({p.name for p in sampled(some, 20)} for some in (pictures, more))
    assert len(before - after) <= 1


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcdef"), st.integers(-1, 1)), st.integers(1, 40), min_size=1, max_size=8
    ),
    st.integers(1, 200),
)
def test_sampled__gives_exactly_as_many_as_asked(sizes: dict[tuple[str, int], int], count: int) -> None:
    taken = sampled(listed(sizes), count)
    found = groups(taken)
    assert len(taken) == len({p.name for p in taken}) == min(count, sum(sizes.values()))
    assert all(found[key] <= size for key, size in sizes.items())
    if count >= len(sizes):
        assert all(found[key] >= 1 for key in sizes)


def test_pictures_to_read__does_not_care_where_the_folder_lies(data_set: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data_set / "test", tmp_path / "elsewhere" / "set")
    asked = Reading(max_pictures=4)
    found = [[p.name for p in pictures_to_read(folder, asked)[0]] for folder in (data_set / "test", other)]
    assert found[0] == found[1]
    assert pictures_to_read(other, asked)[1] == Sample(4, 12)
    assert pictures_to_read(other, Reading(max_pictures=12))[1] is None


def test_parity__a_sample_is_said_in_every_report(
    sound: Path,
    data_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from export.__main__ import main

    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "junit", "html")}
    words = [word for kind, path in files.items() for word in (f"--{kind}-file", str(path))]
    monkeypatch.setattr(
        sys, "argv",
        ["export", "parity", str(sound), "--data", str(data_set / "test"), "--max-pictures", "4", *words],
    )  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    text = "4 of 12, seed 0"
    assert text in capsys.readouterr().out.splitlines()[-1]
    assert text in files["html"].read_text().partition("</div>")[0]
    report = json.loads(files["json"].read_text())
    assert report["sample"] == {"taken": 4, "of": 12, "seed": 0}
    assert report["count"] == 4
    values = {p.attrib["name"]: p.attrib["value"] for p in ET.parse(files["junit"]).iter("property")}
    assert values["sample"] == text


def test_bundle_gate__looks_at_both_labels_of_a_sample(sound: Path, data_set: Path) -> None:
    report = bundle_gate(sound, None, data_set / "test", options=GateOptions(reading=Reading(max_pictures=6)))
    assert Counter(picture.label for picture in report.waterfall.pictures) == {0: 3, 1: 3}
