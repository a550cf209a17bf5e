"""The look at every picture before training, and what is refused by it."""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import DataError
from train.config import TrainConfig
from train.config.sections import DataConfig
from train.data import audit as audit_module
from train.data import facts as facts_module
from train.data.audit import Audit, audit_samples
from train.data.confounds import check_confounds, check_duplicates, leave_one_out_accuracy
from train.data.facts import FactsMemory, PictureFacts
from train.data.layout import Sample, find_samples

CONFIG = TrainConfig().data


def settings(**values: object) -> DataConfig:
    return TrainConfig().with_values((f"data.{key}", value) for key, value in values.items()).data


def write(path: Path, seed: int, size: tuple[int, int] = (40, 48), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label, folder in enumerate(("0_real", "1_fake")):
        for index in range(6):
            write(tmp_path / "a" / folder / f"{index}.png", 2 * index + label)
    return tmp_path


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the pictures that were read, not remembered."""
    seen: list[str] = []
    real = facts_module.picture_facts

    def noting(sample: Sample, *, is_full: bool) -> PictureFacts:
        seen.append(sample.key)
        return real(sample, is_full=is_full)

    monkeypatch.setattr(audit_module, "picture_facts", noting)
    return seen


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("dgsnet"), "propagate", True)
    caplog.set_level(logging.INFO, "dgsnet")
    return caplog


def test_audit_samples__says_what_each_file_is(root: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    write(root / "a/0_real/0.png", 0, exif=turned)
    samples = find_samples(root)
    full = audit_samples(samples, CONFIG, title="train")
    headers = audit_samples(samples, settings(audit="headers"), title="train")
    assert full.samples == headers.samples == samples
    assert not full.unreadable
    for found in (full, headers):
        assert {(f.codec, f.width, f.height) for f in found.facts} == {("PNG", 40, 48)}
    assert [f.file_hash for f in full.facts] == [f.file_hash for f in headers.facts]
    assert len({f.file_hash for f in full.facts}) == len({f.pixel_hash for f in full.facts}) == 12
    assert all(f.pixel_hash is None for f in headers.facts)


@pytest.mark.parametrize("workers", [0, 3])
def test_audit_samples__leave_out_what_cannot_be_read(
    root: Path, workers: int, log: pytest.LogCaptureFixture
) -> None:
    whole = (root / "a/0_real/1.png").read_bytes()
    (root / "a/0_real/1.png").write_bytes(whole[:-2000])
    (root / "a/0_real/2.png").write_bytes(b"")
    write(root / "a/1_fake/3.png", 7, size=(31, 400))
    (root / "a/1_fake/4.png").unlink()
    os.mkfifo(root / "a/1_fake/4.png")
    samples = find_samples(root)
    config = settings(max_corrupt=0.34, workers=workers)
    found = audit_samples(samples, config, title="train")
    assert [s.key for s, _ in found.unreadable] == [
        "a/0_real/1.png", "a/0_real/2.png", "a/1_fake/3.png", "a/1_fake/4.png"
    ]  # fmt: skip
    reasons = [reason for _, reason in found.unreadable]
    assert reasons[0].startswith("truncated picture")
    assert "31 x 400" in reasons[2]
    assert found.samples == [s for s in samples if s not in [bad for bad, _ in found.unreadable]]
    assert "left out: a/0_real/2.png: found an empty file" in log.text
    with pytest.raises(
        DataError, match=r"train: 4 of 12 .*, expected at most 20.00%: a/0_real/1.png \("
    ) as e:
        audit_samples(samples, settings(max_corrupt=0.2), title="train")
    assert "and 1 more; replace them or raise data.max_corrupt" in str(e.value)
    assert "\n" not in str(e.value)
    # Headers do not show that the data behind them is cut off.
    headers = audit_samples(samples, settings(audit="headers", max_corrupt=0.34), title="train")
    assert len(headers.unreadable) == 3


def test_audit_samples__refuses_to_lose_a_label(root: Path) -> None:
    for path in (root / "a/1_fake").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no picture of label 1 can be read"):
        audit_samples(find_samples(root), settings(max_corrupt=1), title="train")


def test_audit_samples__reads_again_only_what_changed(root: Path, looks: list[str]) -> None:
    samples = find_samples(root)
    headers = settings(audit="headers")
    first = audit_samples(samples, headers, title="train")
    assert len(looks) == 12
    looks.clear()
    assert audit_samples(samples, headers, title="train").facts == first.facts
    assert not looks
    full = audit_samples(samples, CONFIG, title="train")  # headers alone do not answer for pixels
    assert len(looks) == 12
    looks.clear()
    again = audit_samples(samples, headers, title="train")  # and pixels answer for headers
    assert again.facts == first.facts
    assert again.remembered == 12
    assert audit_samples(samples, CONFIG, title="train").facts == full.facts
    assert not looks
    os.utime(write(root / "a/0_real/3.png", 99), (1e9, 1e9 + 1))
    changed = audit_samples(samples, CONFIG, title="train")
    assert looks == ["a/0_real/3.png"]
    assert [a == b for a, b in zip(changed.facts, full.facts, strict=True)].count(False) == 1
    looks.clear()
    FactsMemory(root / "a/1_fake")._path.write_text('{"schema": 1, "pictures": {"1.png": [')
    audit_samples(samples, CONFIG, title="train")
    assert sorted(looks) == [f"a/1_fake/{index}.png" for index in range(6)]
    looks.clear()
    os.utime(root / "a/0_real/3.png")  # changed just now: read every time until its time stamp can be trusted
    for _ in range(2):
        audit_samples(samples, CONFIG, title="train")
    assert looks == ["a/0_real/3.png"] * 2


def test_audit_samples__go_on_after_an_interruption(
    root: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_CHUNK", 2)
    real = facts_module.picture_facts

    def stopping(sample: Sample, *, is_full: bool) -> PictureFacts:
        if sample.key == "a/0_real/4.png":
            raise KeyboardInterrupt
        return real(sample, is_full=is_full)

    samples = find_samples(root)
    with monkeypatch.context() as patch:
        patch.setattr(audit_module, "picture_facts", stopping)
        with pytest.raises(KeyboardInterrupt):
            audit_samples(samples, CONFIG, title="train")
    looks.clear()
    audit_samples(samples, CONFIG, title="train")
    assert sorted(looks) == [s.key for s in samples[4:]]


def test_audit_samples__look_into_shards(root: Path, tmp_path: Path, looks: list[str]) -> None:
    folders = find_samples(root)
    shard = tmp_path / "shards" / "x.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        for number, sample in enumerate(folders):
            label = tmp_path / "label"
            label.write_text(str(sample.label))
            archive.add(sample.path, f"{number}.png")
            archive.add(label, f"{number}.cls")
    os.utime(shard, (1e9, 1e9))
    samples = find_samples(shard.parent)
    inside = audit_samples(samples, CONFIG, title="train")
    assert inside.facts == audit_samples(folders, CONFIG, title="train").facts
    looks.clear()
    assert audit_samples(samples, CONFIG, title="train").remembered == 12
    os.utime(shard, (1e9, 1e9 + 1))
    assert audit_samples(samples, CONFIG, title="train").remembered == 0
    assert len(looks) == 12


def made(real: list[tuple[str, int, int]], fake: list[tuple[str, int, int]], generator: str = "g") -> Audit:
    samples, facts = [], []
    for label, pictures in enumerate((real, fake)):
        for number, (codec, width, height) in enumerate(pictures):
            key = f"{generator}/{label}/{number}"
            samples.append(Sample(key, Path(key), label, generator))
            facts.append(PictureFacts(codec, width, height, key.encode(), None))
    return Audit("train", samples, facts)


DRAW = np.random.default_rng(5)
SIDES = [(int(w), int(h)) for w, h in DRAW.integers(200, 1400, (400, 2))]
EVERY = range(300, 400)
VARIED = [("JPEG", w, h) for w, h in SIDES[:200]]


@pytest.mark.parametrize(
    ("real", "fake", "told_by"),
    [
        ([("JPEG", 64, 64)] * 20, [("PNG", 64, 64)] * 20, "codec alone .*100.0%.*real JPEG, generated PNG"),
        ([("JPEG", 64, 64)] * 200, [("PNG", 64, 64)] * 5, "codec alone"),
        ([("PNG", 500, 375)] * 20, [("PNG", 512, 512)] * 20, "size alone .*real 500 x 375, gen.* 512 x 512"),
        (VARIED, [("JPEG", 512, 512)] * 200, "size alone"),
        ([("PNG", 500, h) for h in EVERY], [("PNG", 512, h) for h in EVERY], "width alone"),
        ([("PNG", w, 500) for w in EVERY], [("PNG", w, 512) for w in EVERY], "height alone"),
        (
            [("PNG", 2 * w, 2 * h) for w, h in SIDES[:200] if min(w, h) > 800],
            [("PNG", w // 2, h // 2) for w, h in SIDES[200:]],
            "pixel count alone .*megapixels",
        ),
    ],
)
def test_check_confounds__refuses_labels_told_without_pixels(
    real: list[tuple[str, int, int]],
    fake: list[tuple[str, int, int]],
    told_by: str,
    log: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(DataError, match=f"train: the {told_by}") as caught:
        check_confounds(made(real, fake), allow=False)
    assert str(caught.value).endswith("data.allow_confounded=true")
    assert "\n" not in str(caught.value)
    assert not log.messages
    check_confounds(made(real, fake), allow=True)
    assert log.messages[0].endswith("(data.allow_confounded is on)")


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        ([("PNG", 64, 64)] * 20, [("PNG", 64, 64)] * 20),
        # Every picture has a size of its own: a rule learned by heart would be right on all of them.
        (VARIED, [("JPEG", w, h) for w, h in SIDES[200:]]),
        (VARIED[:3], [("JPEG", w, h) for w, h in SIDES[200:203]]),
        # The classes' sizes differ, neither property does.
        ([("PNG", 64, 64)] * 300, [("PNG", 64, 64)] * 3),
        # AIGIBench's mixture: half of it tells nothing.
        ([("PNG", 256, 256)] * 50 + VARIED[:50], [("PNG", 256, 256)] * 50 + [("PNG", 512, 512)] * 50),
        ([("PNG", 64, 64)] * 9 + [("JPEG", 64, 64)] * 91, [("PNG", 64, 64)] * 91 + [("JPEG", 64, 64)] * 9),
    ],
)
def test_check_confounds__accepts_the_rest(
    real: list[tuple[str, int, int]], fake: list[tuple[str, int, int]], log: pytest.LogCaptureFixture
) -> None:
    check_confounds(made(real, fake), allow=False)
    assert not log.messages


def test_check_confounds__warns_of_one_generator(log: pytest.LogCaptureFixture) -> None:
    plain = made([("PNG", 256, 256)] * 50, [("PNG", 256, 256)] * 50, "progan")
    told = made([("JPEG", 256, 256)] * 50, [("PNG", 256, 256)] * 50, "sd\x1b")
    check_confounds(Audit("train", plain.samples + told.samples, plain.facts + told.facts), allow=False)
    assert len(log.messages) == 1
    assert log.messages[0].startswith("train, within 'sd\\x1b': the codec alone")


def test_leave_one_out_accuracy__is_what_counting_gives() -> None:
    draw = np.random.default_rng(1)
    for _ in range(20):
        labels = np.r_[0, 1, draw.integers(0, 2, 30)]
        values = draw.integers(0, 12, 32) * (draw.random(32) < 0.8) + labels * (draw.random(32) < 0.5)
        sizes = np.bincount(values)
        merged = np.where(sizes[values] == 1, -1, values)
        right: list[list[float]] = [[], []]
        for k, (value, label) in enumerate(zip(merged, labels, strict=True)):
            rest = np.arange(32) != k
            shares = [
                np.mean(merged[rest & (labels == y)] == value) if (rest & (labels == y)).any() else 0.0
                for y in (0, 1)
            ]
            ahead = np.sign(round(shares[label] - shares[1 - label], 12))
            right[label].append((ahead + 1) / 2)
        expected = (np.mean(right[0]) + np.mean(right[1])) / 2
        assert leave_one_out_accuracy(values.tolist(), labels) == pytest.approx(expected)


def test_check_duplicates__finds_copies_in_val_and_under_both_labels(
    root: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    train = root / "a"
    val = tmp_path / "v"
    for label, folder in enumerate(("0_real", "1_fake")):
        for index in range(3):
            write(val / folder / f"{index}.png", 100 + 2 * index + label)

    def audits(config: DataConfig = CONFIG) -> tuple[Audit, Audit]:
        return tuple(
            audit_samples(find_samples(path), config, title=title)
            for path, title in ((train, "train"), (val, "val"))
        )

    check_duplicates(*audits(), allow=False)
    check_duplicates(audits()[0], None, allow=False)
    shutil.copy(train / "0_real/2.png", val / "0_real/copy.png")
    with Image.open(train / "1_fake/5.png") as picture:
        picture.save(val / "1_fake/saved again.webp", lossless=True)
    with pytest.raises(
        DataError, match=r"val: 2 of 8 pictures are in train too: 0_real/copy\.png = 0_real/2"
    ):
        check_duplicates(*audits(), allow=False)
    with pytest.raises(DataError, match="val: 1 of 8"):  # only pixels show the other
        check_duplicates(*audits(settings(audit="headers")), allow=False)
    check_duplicates(*audits(), allow=True)
    assert "data.allow_duplicates is on" in log.messages[-1]
    (val / "0_real/copy.png").unlink()
    (val / "1_fake/saved again.webp").unlink()
    shutil.copy(train / "0_real/2.png", train / "0_real/again.png")
    check_duplicates(*audits(), allow=False)
    shutil.copy(train / "0_real/2.png", train / "1_fake/x.png")
    with pytest.raises(
        DataError, match=r"1 pictures stand under both labels: 1_fake/x\.png = 0_real/2\.png; "
    ):
        check_duplicates(*audits(), allow=False)
