"""What an evaluation refuses before it scores, and where it finds the sources of pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import DataError
from train.config import DataConfig
from train.data.degrade import degradation_from_name
from train.evaluation.evaluate import evaluate_run
from train.evaluation.scores import readable_samples


@pytest.fixture
def pictures(data_set: Path, tmp_path: Path) -> Path:
    """A copy of twelve test pictures that a test may change, as DATA/<generator>/<label folder>."""
    return Path(shutil.copytree(data_set / "test", tmp_path / "pictures"))


def shard_of(pictures: Path, path: Path) -> Path:
    """Packs the pictures as a WebDataset shard whose members are "<generator>/<label>-<name>"."""
    with tarfile.open(path, "w") as archive:
        for picture in sorted(pictures.rglob("*.png")):
            label = picture.parent.name[0]
            stem = f"{picture.parent.parent.name}/{label}-{picture.stem}"
            for name, content in ((f"{stem}.png", picture.read_bytes()), (f"{stem}.cls", label.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_readable_samples__decodes_whatever_the_runs_audit_was(pictures: Path) -> None:
    broken = pictures / "blur" / "0_real" / "001.png"
    broken.write_bytes(broken.read_bytes()[:-5000])  # its header is whole
    config = DataConfig(audit="headers", max_corrupt=0.5)
    audit = readable_samples(pictures, config, title="test")
    assert [sample.key for sample, _ in audit.unreadable] == ["blur/0_real/001.png"]
    assert len(audit.samples) == 11
    with pytest.raises(DataError, match="1 of 12 pictures cannot be read"):
        readable_samples(pictures, config, title="test", max_corrupt=0.05)
    strict = dataclasses.replace(config, max_corrupt=0.0)
    assert len(readable_samples(pictures, strict, title="test", max_corrupt=0.1).samples) == 11


def test_evaluate_run__refuses_a_picture_that_no_webp_can_hold(run_folder: Path, pictures: Path) -> None:
    Image.fromarray(np.zeros((32, 16_384, 3), np.uint8)).save(pictures / "blur" / "0_real" / "long.png")
    with pytest.raises(DataError, match=r"long.png: found 16384 x 32 pixels, webp:80 takes at most 16383"):
        evaluate_run(run_folder, pictures, degradations=[degradation_from_name("webp:80")])
    scored = evaluate_run(run_folder, pictures, degradations=[degradation_from_name("jpeg:80")])
    assert scored.degraded["jpeg:80"][0].count == 13


def test_evaluate_run__refuses_a_generator_whose_readable_pictures_are_of_one_class(
    run_folder: Path, pictures: Path
) -> None:
    shutil.copytree(pictures / "blur", pictures / "other")
    for picture in (pictures / "other" / "1_fake").iterdir():
        picture.write_bytes(b"nothing")
    with pytest.raises(DataError, match="other: found real pictures only, expected both"):
        evaluate_run(run_folder, pictures, max_corrupt=0.5)


def test_evaluate_run__scores_a_shard_as_its_files(run_folder: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    shard = shard_of(pictures, tmp_path / "shards" / "set-000.tar")
    files = {path: f"{path.parent.name}/{path.stem}" for path in sorted(pictures.rglob("*.png"))}
    of_files = {path.relative_to(tmp_path).as_posix(): {"source": name} for path, name in files.items()}
    of_members = {
        f"shards/set-000.tar/blur/{path.parent.name[0]}-{path.stem}.png": {"source": name}
        for path, name in files.items()
    }
    sources = tmp_path / "sources.json"
    sources.write_text(json.dumps(of_files | of_members))
    expected = evaluate_run(run_folder, pictures, sources=sources)
    found = evaluate_run(run_folder, shard.parent, sources=sources)
    assert sorted(found.logits.tolist()) == pytest.approx(sorted(expected.logits.tolist()), abs=1e-5)
    assert [row.name for row in found.rows] == ["blur"]
    assert found.rows[0].ap == pytest.approx(expected.rows[0].ap)
    assert found.rows[0].ap_low is not None

    del of_members["shards/set-000.tar/blur/1-003.png"]
    sources.write_text(json.dumps(of_members))
    with pytest.raises(DataError, match=r"the source of 'shards/set-000.tar/blur/1-003.png' is missing"):
        evaluate_run(run_folder, shard.parent, sources=sources)


@pytest.mark.parametrize("content", ["", "[1]", '{"pictures": 1}', "\x00"])
def test_evaluate_run__refuses_a_broken_map_of_sources(
    run_folder: Path, pictures: Path, tmp_path: Path, content: str
) -> None:
    sources = tmp_path / "sources.json"
    sources.write_text(content)
    with pytest.raises(DataError, match=r"sources.json: ") as caught:
        evaluate_run(run_folder, pictures, sources=sources)
    assert "\n" not in str(caught.value)
