"""Captions: where they come from, what is refused, and that folder names never give a label away."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import DataError, UsageError
from train.captioning.template import is_subject, template_captions
from train.data.captions import find_captions
from train.data.layout import Sample, find_samples

# Test folders, training classes and label folders of AIGIBench, GenImage and plain data sets.
NO_SUBJECTS = (
    "ProGAN", "R3GAN", "StyleGAN3", "StyleGAN-XL", "StyleSwim", "WFIR", "SDXL", "SD3", "DALLE-3",
    "Midjourney-V6", "FLUX1-dev", "Imagen3", "GLIDE", "BlendFace", "E4S", "FaceSwap", "InSwap", "SimSwap",
    "InstantID", "Infinite-ID", "PhotoMaker", "BLIP", "IP-Adapter", "SocialRF", "CommunityAI", "sdv1.4",
    "0_real", "1_fake", "real", "fake", "Real", "Fake", "generated", "Generated", "ai", "AI", "nature",
    "train", "val", "test", "midjourney", "wukong", "glide", "biggan", "stable_diffusion", "real_cars",
    "fake-cars", "ai_art", "ai-generated", "synthetic", "deepfakes", "aigc", "images", "n01440764", "001",
    ".", "-",
)  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """AIGIBench's training layout: 4 classes of 2 real and 2 generated pictures, which nobody opens."""
    for group in ("car", "airplane", "living_room", "sdv1.4"):
        for label in ("0_real", "1_fake"):
            for index in range(2):
                touch(tmp_path / "train" / group / label / f"{index}.png")
    return tmp_path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def numbered(samples: list[Sample]) -> dict[str, str]:
    return {sample.key: f"caption number {index}" for index, sample in enumerate(samples)}


def test_find_captions__reads_the_map_beside_the_data_by_default(folders: Path) -> None:
    samples = find_samples(folders, "train")
    content = numbered(samples)
    pairs = list(content.items())
    random.Random(3).shuffle(pairs)
    (folders / "captions.json").write_text(json.dumps(dict(pairs)))
    assert find_captions(samples, "", folders) == list(content.values())
    shuffled = random.Random(4).sample(samples, len(samples))
    assert find_captions(shuffled, "", folders) == [content[sample.key] for sample in shuffled]


def test_find_captions__names_the_ways_to_get_captions(folders: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_captions(find_samples(folders, "train"), "", folders)
    for way in (
        "captions.json: no such file",
        "train caption DATA",
        "--captions template",
        "--captions sidecar",
    ):
        assert way in str(caught.value)


def test_find_captions__reads_the_authors_map_of_absolute_paths(folders: Path, tmp_path: Path) -> None:
    samples = find_samples(folders, "train")
    texts = list(numbered(samples).values())
    there = tmp_path.with_name(f"{tmp_path.name}_text") / "train.json"
    there.parent.mkdir()
    for root in (folders, Path("/home/someone/AIGIBench")):
        keys = [f"{root}/{sample.key}" for sample in samples]
        there.write_text(json.dumps(dict(zip(keys, texts, strict=True))))
        assert find_captions(samples, str(there), folders) == texts


def test_find_captions__prefers_the_data_set_s_own_absolute_path(folders: Path) -> None:
    samples = find_samples(folders, "train")
    own = {f"{folders}/{key}": text for key, text in numbered(samples).items()}
    other = {f"/elsewhere/{sample.key}": "of another data set" for sample in samples}
    file = folders / "both.json"
    file.write_text(json.dumps(other | own))
    assert find_captions(samples, str(file), folders) == list(own.values())
    file.write_text(json.dumps(other | {f"/third/{samples[0].key}": "of a third"}))
    with pytest.raises(
        DataError, match=r"different captions for train/airplane/0_real/0.png, under /elsewhere/"
    ):
        find_captions(samples, str(file), folders)


def test_find_captions__says_which_and_how_many_are_missing(folders: Path) -> None:
    samples = find_samples(folders, "train")
    content = numbered(samples)
    for sample in samples[2:5]:
        del content[sample.key]
    (folders / "captions.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        find_captions(samples, "", folders)
    message = str(caught.value)
    assert "missing for 3 of 16 samples, first train/airplane/1_fake/0.png" in message
    assert "its first key is train/airplane/0_real/0.png" in message
    assert "train caption DATA -o" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train/car/0_real/0.png": 7}, r"1 captions that are no text, first train/car/0_real/0.png: '7'"),
        ({"train/car/0_real/0.png": None}, r"no text, first train/car/0_real/0.png"),
        ({"train/car/0_real/0.png": " \n"}, r"1 captions .* first train/car/0_real/0.png \(empty\)"),
        ({"train/car/0_real/0.png": "a \ud800"}, r"train/car/0_real/0.png \(not valid Unicode\)"),
    ],
    ids=["number", "null", "blank", "surrogate"],
)
def test_find_captions__refuses_what_is_no_caption(
    folders: Path, change: dict[str, Any], expected: str
) -> None:
    samples = find_samples(folders, "train")
    (folders / "captions.json").write_text(json.dumps(numbered(samples) | change))
    with pytest.raises(DataError, match=expected):
        find_captions(samples, "", folders)


@pytest.mark.parametrize("text", ["[]", "{", '"text"', "[" * 100_000], ids=["list", "cut", "text", "deep"])
def test_find_captions__refuses_a_file_that_is_no_map(folders: Path, text: str) -> None:
    (folders / "captions.json").write_text(text)
    with pytest.raises(DataError, match=r"captions.json: (cannot be read as a JSON map|found a JSON)"):
        find_captions(find_samples(folders, "train"), "", folders)


def test_find_captions__reads_text_files_beside_the_pictures(folders: Path) -> None:
    samples = find_samples(folders, "train")
    content = numbered(samples)
    for sample in samples:
        sample.path.with_suffix(".txt").write_text(content[sample.key] + "\n")
    assert find_captions(samples, "sidecar", folders) == list(content.values())
    samples[3].path.with_suffix(".txt").unlink()
    with pytest.raises(DataError, match=rf"missing for 1 of 16 samples, first {samples[3].key}; .*--sidecar"):
        find_captions(samples, "sidecar", folders)


def test_find_captions__reads_text_members_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "000.tar", "w") as shard:
        for label in (0, 1):
            members = {"png": b"picture", "cls": str(label).encode(), "txt": f"kite {label}".encode()}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{label}.{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    samples = find_samples(tmp_path, "train")
    assert find_captions(samples, "sidecar", tmp_path) == ["kite 0", "kite 1"]
    assert find_captions(samples, "template", tmp_path) == ["a photo", "a photo"]


def test_template_captions__come_from_class_folders(folders: Path) -> None:
    samples = find_samples(folders, "train")
    by_folder = {s.generator: c for s, c in zip(samples, template_captions(samples), strict=True)}
    assert by_folder == {
        "car": "a photo of a car",
        "airplane": "a photo of an airplane",
        "living_room": "a photo of a living room",
        "sdv1.4": "a photo",
    }


def test_template_captions__do_not_change_with_the_labels(folders: Path) -> None:
    """Real and generated pictures of one folder get the same caption, so the label cannot be read from it."""
    samples = find_samples(folders, "train")
    real, generated = (
        [c for s, c in zip(samples, template_captions(samples), strict=True) if s.label == label]
        for label in (0, 1)
    )
    assert real == generated


def test_template_captions__say_nothing_of_plain_folders(tmp_path: Path) -> None:
    for label in ("real", "fake"):
        touch(tmp_path / "birds" / "train" / label / "0.png")
    samples = find_samples(tmp_path / "birds", "train")
    assert template_captions(samples) == ["a photo", "a photo"]


@pytest.mark.parametrize("folder", NO_SUBJECTS)
def test_template_captions__never_name_a_label_or_a_generator(folder: str) -> None:
    samples = [Sample(f"train/{folder}/{n}_x/0.png", Path("0.png"), n, folder) for n in (0, 1)]
    assert template_captions(samples) == ["a photo", "a photo"]


@pytest.mark.parametrize("folder", ["car", "Horse", "living_room", "Sea-lion", "ox", "traffic light"])
def test_is_subject__takes_words(folder: str) -> None:
    assert is_subject(folder)


def test_template_captions__do_not_give_away_a_folder_of_one_label() -> None:
    """A shard's folders are free: a subject that only generated pictures bear is their label's name."""
    samples = [
        Sample(f"train/0.tar/{folder}/{index}.png", Path("0.tar"), label, folder)
        for index, (folder, label) in enumerate([("car", 0), ("car", 1), ("kandinsky", 1), ("boat", 0)])
    ]
    assert template_captions(samples) == ["a photo of a car", "a photo of a car", "a photo", "a photo"]
