"""The demo data: what is in the folder, the same every time, and only pixels tell the class."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.errors import DataError, MissingDependencyError, UsageError
from train.demo import DemoSettings, build_demo_data
from train.demo import photographs as photographs_module
from train.demo.build import image_sources
from train.demo.command import demo_data
from train.demo.photographs import PHOTOGRAPHS, load_photographs
from train.demo.settings import FAMILIES, LARGEST_SIDE, MARGIN, SEEN_FAMILIES, SMALLEST_SIDE, UNSEEN_FAMILY

LABEL_WORDS = re.compile(
    r"real|fake|generat|synth|artificial|nearest|transpos|shuffle|sharp|blur|smooth", re.I
)


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    summary = build_demo_data(folder, DemoSettings.tiny(seed=3))
    assert not summary.already_done
    return folder


def _pictures(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_demo_data__layout_and_counts_are_those_of_the_settings(data: Path) -> None:
    settings = DemoSettings.tiny(seed=3)
    expected = {
        (split, family, class_folder): settings.per_class(split)
        for split, families in (("train", SEEN_FAMILIES), ("val", SEEN_FAMILIES), ("test", FAMILIES))
        for family in families
        for class_folder in ("0_real", "1_fake")
    }
    assert Counter(tuple(path.split("/")[:3]) for path in _pictures(data)) == expected
    assert sorted(path.name for path in data.iterdir()) == [
        "captions.json", "demo.json", "sources.json", "test", "train", "val",
    ]  # fmt: skip


def test_demo_data__default_settings_promise_enough_pictures() -> None:
    counts = DemoSettings().image_counts()
    assert sum(counts["test"].values()) >= 200
    assert min(counts["test"].values()) >= 100
    assert set(counts["test"]) - set(counts["train"]) == {UNSEEN_FAMILY}
    assert UNSEEN_FAMILY not in counts["val"]


def test_demo_data__equal_settings_give_equal_bytes_on_any_number_of_cores(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.demo.build.usable_cpus", lambda: 1)
    build_demo_data(tmp_path / "again", DemoSettings.tiny(seed=3))
    assert _bytes_below(tmp_path / "again") == _bytes_below(data)


def test_demo_data__no_pixel_is_shared_between_splits(data: Path) -> None:
    records = json.loads((data / "sources.json").read_text(encoding="utf-8"))
    assert set(records) == set(_pictures(data))
    used: dict[tuple[str, str], np.ndarray] = {}
    for path, record in records.items():
        source = next(photo for photo in PHOTOGRAPHS if photo.name == record["source"])
        mask = used.setdefault((path.split("/")[0], source.name), np.zeros(source.size[::-1], dtype=bool))
        left, top, right, bottom = record["box"]
        assert 0 <= left < right <= source.size[0]
        assert 0 <= top < bottom <= source.size[1]
        mask[top:bottom, left:right] = True
    for (split, name), mask in used.items():
        for (other_split, other_name), other in used.items():
            if name == other_name and split != other_split:
                assert not (mask & other).any(), (name, split, other_split)


def test_photographs__test_has_files_of_its_own_and_regions_never_overlap() -> None:
    for photograph in PHOTOGRAPHS:
        if "test" in photograph.regions:
            assert set(photograph.regions) == {"test"}
        for (_, one), (_, two) in itertools.combinations(photograph.regions.items(), 2):
            assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        for left, top, right, bottom in photograph.regions.values():
            assert 0 <= left < right <= photograph.size[0]
            assert 0 <= top < bottom <= photograph.size[1]
            assert min(right - left, bottom - top) >= SMALLEST_SIDE + 2 * MARGIN
    scenes = {photograph.name.split("_")[0] for photograph in PHOTOGRAPHS if "train" in photograph.regions}
    assert len(scenes) >= 4
    assert not scenes & {photo.name.split("_")[0] for photo in PHOTOGRAPHS if "test" in photo.regions}


def test_demo_data__real_pictures_are_pixels_of_the_photograph_at_native_resolution(data: Path) -> None:
    records = json.loads((data / "sources.json").read_text(encoding="utf-8"))
    pixels = {photo.source.name: photo.pixels for photo in load_photographs()}
    for path, record in records.items():
        left, top, right, bottom = record["box"]
        original = pixels[record["source"]][top + MARGIN : bottom - MARGIN, left + MARGIN : right - MARGIN]
        saved = np.asarray(Image.open(data / path))
        assert saved.shape == original.shape
        assert np.array_equal(saved, original) == ("/0_real/" in path), path


def test_demo_data__size_format_mode_and_metadata_do_not_tell_the_class(data: Path) -> None:
    facts: dict[str, Counter[object]] = {"0_real": Counter(), "1_fake": Counter()}
    names: dict[str, Counter[str]] = {"0_real": Counter(), "1_fake": Counter()}
    for path in _pictures(data):
        group, _, rest = path.rpartition("/")
        parent, class_folder = group.rsplit("/", 1)
        with Image.open(data / path) as picture:
            assert all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in picture.size)
            facts[class_folder][(parent, picture.size, picture.format, picture.mode, str(picture.info))] += 1
        names[class_folder][f"{parent}/{rest}"] += 1
    assert facts["0_real"] == facts["1_fake"]
    assert names["0_real"] == names["1_fake"]


def test_demo_data__every_picture_has_a_caption_that_does_not_name_its_class(data: Path) -> None:
    captions = json.loads((data / "captions.json").read_text(encoding="utf-8"))
    assert set(captions) == set(_pictures(data))
    for path, caption in captions.items():
        assert not LABEL_WORDS.search(caption), caption
        subject = next(p.subject for p in PHOTOGRAPHS if p.name == image_sources(data)[path])
        assert subject in caption


def test_demo_data__families_up_sample_by_three_different_modules() -> None:
    from torch import nn

    from train.demo.generators import Generator

    kinds = {}
    for family in FAMILIES:
        modules = [type(module) for module in Generator(family, 8, 4).modules()]
        kinds[family] = {
            kind for kind in (nn.Upsample, nn.ConvTranspose2d, nn.PixelShuffle) if kind in modules
        }
    assert kinds == {
        "nearest": {nn.Upsample}, "transposed": {nn.ConvTranspose2d}, "pixelshuffle": {nn.PixelShuffle},
    }  # fmt: skip


def test_generators__fitting_brings_the_picture_closer_and_leaves_torch_as_it_was() -> None:
    import torch

    from train.demo.generators import deterministic_torch, fit_generators, generate

    picture = load_photographs()[0].region("train")
    crop = picture[100:164, 150:214]
    torch.manual_seed(11)
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state())
    errors = []
    for steps in (1, 40):
        fitted = fit_generators(
            ["nearest"], [picture], seed=0, steps=steps, width=8, code_channels=8, batch=8, crop=32,
            workers=1, on_step=lambda: None,
        )  # fmt: skip
        with deterministic_torch(0):
            errors.append(np.abs(generate(fitted["nearest"], crop).astype(int) - crop).mean())
    assert errors[1] < 0.6 * errors[0], errors
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_demo_data__done_is_left_alone_and_other_settings_are_refused(data: Path) -> None:
    before = _bytes_below(data)
    assert build_demo_data(data, DemoSettings.tiny(seed=3)).already_done
    with pytest.raises(UsageError, match=r"seed = 3, asked for 5.*--overwrite"):
        build_demo_data(data, DemoSettings.tiny(seed=5))
    assert _bytes_below(data) == before


def test_demo_data__overwrite_replaces_demo_data_of_another_seed(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    arguments = [str(folder), "--tiny", "--seed", "4", "--overwrite", "--json"]
    result = CliRunner().invoke(demo_data, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert not json.loads(result.stdout)["already_done"]
    assert json.loads((folder / "demo.json").read_text())["settings"]["seed"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    before, after = _bytes_below(data), _bytes_below(folder)
    assert set(before) == set(after)
    assert all(before[path] != after[path] for path in before if "/1_fake/" in path)


def test_demo_data__overwrite_never_touches_anything_else(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a demo data set"):
        build_demo_data(tmp_path, DemoSettings.tiny(), overwrite=True)
    assert (tmp_path / "holiday.png").read_bytes() == b"x"


def test_demo_data__a_lost_picture_is_reported(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    lost = _pictures(folder)[7]
    (folder / lost).unlink()
    with pytest.raises(DataError, match=re.escape(lost)):
        build_demo_data(folder, DemoSettings.tiny(seed=3))


def test_demo_data__a_failure_in_the_middle_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.demo import build

    saved: list[Path] = []
    save = build._save

    def failing(path: Path, picture: np.ndarray) -> None:
        if len(saved) >= 5:
            raise OSError("no space left on device")
        save(path, picture)
        saved.append(path)

    monkeypatch.setattr(build, "_save", failing)
    with pytest.raises(OSError, match="no space"):
        build_demo_data(tmp_path / "data", DemoSettings.tiny())
    assert len(saved) >= 5
    assert list(tmp_path.iterdir()) == []


def test_demo_data__stamp_names_sources_and_no_path_of_this_machine(data: Path) -> None:
    text = (data / "demo.json").read_text(encoding="utf-8")
    stamp = json.loads(text)
    assert [photo["file"] for photo in stamp["photographs"]] == [photo.path for photo in PHOTOGRAPHS]
    assert all(re.fullmatch(r"[0-9a-f]{64}", photo["sha256"]) for photo in stamp["photographs"])
    assert str(data.parent) not in text
    assert str(Path(np.__file__).parent.parent) not in text


@pytest.mark.parametrize("package", ["skimage", "sklearn"])
def test_photographs__a_missing_package_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = photographs_module.find_spec
    monkeypatch.setattr(photographs_module, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingDependencyError, match=r"dgsnet\[train\]"):
        load_photographs()


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"train_per_class": 0}, {"fit_crop": 33}, {"fit_steps": True}]
)
def test_demo_settings__refuse_values_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DemoSettings(**wrong)


def test_generators__a_failing_step_stops_the_other_families_too() -> None:
    from train.demo.generators import fit_generators

    done = []

    def fail_at_third() -> None:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_generators(
            ["nearest", "transposed"], [load_photographs()[0].pixels], seed=0, steps=100_000, width=4,
            code_channels=4, batch=1, crop=16, workers=2, on_step=fail_at_third,
        )  # fmt: skip
