"""Building over a bundle that is there: what may go, what may not, and what is said of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from export.build import BundleOptions, build_bundle
from export.bundle.add_engine import add_engine
from export.bundle.replacing import PlannedEngine, engines_lost
from export.cli import cli
from export.engine.options import BuildOptions
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import Manifest, parse_manifest
from runtime.bundle.opening import open_bundle
from runtime.errors import UsageError
from tests.export.vit_graph import vit_model

SMALL = BuildOptions(profiles=((1, 2, 2),))
JETSON = EngineEntry(
    "engines/tiny_fp16_b1-8-32_sm87_trt10.3.0.26.engine",
    "tensorrt", "fp16", ((1, 8, 32), (1, 1, 1)), ("sm_87",), "10.3.0.26", "Orin", "12.6", "passed",
)  # fmt: skip


def manifest(bundle: Path) -> Manifest:
    return parse_manifest((bundle / "manifest.json").read_bytes())


def add(bundle: Path, entry: EngineEntry) -> EngineEntry:
    """Adds an engine as a device does, whose bytes nobody here can make."""
    file = bundle.with_name("from-the-device.engine")
    file.write_bytes(b"built on a device")
    return add_engine(bundle, file, entry, built_from=manifest(bundle).files)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that runs on onnxruntime alone."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(vit_model(), folder / "model.onnx")
    return build_bundle(folder / "model.onnx", folder / "b", BundleOptions(engine=SMALL)).bundle


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same with an engine of a device."""
    shutil.copytree(made, tmp_path / "b")
    add(tmp_path / "b", JETSON)
    return tmp_path / "b"


def build(*words: object) -> Result:
    done = CliRunner().invoke(cli, ["build-engine", *map(str, words), "--max-batch", "2"])
    assert done.exception is None or isinstance(done.exception, (SystemExit, UsageError)), done.exception
    return done


def test_build_engine__refuses_to_lose_an_engine_before_it_reads_anything(
    copy: Path, fp32_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    began: list[object] = []
    monkeypatch.setattr("export.golden_images.golden_mosaics", began.append)
    monkeypatch.setattr("export.build.write_graph", lambda *words: began.append(words))
    done = build(fp32_onnx, "-o", copy, "--golden", tmp_path)
    message = str(done.exception)
    assert isinstance(done.exception, UsageError)
    assert f"holds {JETSON.file}, which this build does not make again" in message
    assert "--overwrite" in message
    assert "\n" not in message
    assert began == []
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_build_bundle__looks_again_once_the_bundle_is_locked(copy: Path, fp32_onnx: Path) -> None:
    with pytest.raises(UsageError, match="sm87"):
        build_bundle(fp32_onnx, copy, BundleOptions(engine=SMALL))


def test_build_engine__overwrite_replaces_it_all_and_says_what_went(
    copy: Path, fp32_onnx: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = BundleOptions(engine=SMALL, overwrite=True)
    with caplog.at_level("INFO", logger="dgsnet"):
        build_bundle(fp32_onnx, copy, options)
    assert [r.message for r in caplog.records if JETSON.file in r.message and "is gone" in r.message]
    assert not (copy / JETSON.file).exists()
    with open_bundle(copy, verify="full") as opened:
        opened.join()
        assert {entry.backend for entry in opened.manifest.engines} == {"onnxruntime"}
    caplog.clear()
    with caplog.at_level("INFO", logger="dgsnet"):
        build_bundle(fp32_onnx, copy, options)
    assert not [r.message for r in caplog.records if "is gone" in r.message]


def test_build_engine__has_the_flag_and_a_bundle_as_source_has_no_use_for_it(
    copy: Path, fp32_onnx: Path
) -> None:
    assert build(fp32_onnx, "-o", copy, "--overwrite", "-q").exit_code == 0
    assert not (copy / JETSON.file).exists()
    done = build(copy, "--backend", "tensorrt-rtx", "--overwrite")
    assert "--overwrite: a bundle as source is extended in place" in str(done.exception)


def test_build_engine__the_same_build_goes_on_working(fp32_onnx: Path, tmp_path: Path) -> None:
    """With a real engine: what the same command makes is no loss, and another target is one."""
    pytest.importorskip("tensorrt_rtx_bindings")
    words = (fp32_onnx, "-o", tmp_path / "b", "-q", "--backend", "tensorrt-rtx", "--precision", "fp32")
    assert build(*words, "--target", "sm_86,sm_89").exit_code == 0
    assert build(*words, "--target", "sm_86,sm_89").exit_code == 0
    done = build(*words, "--target", "sm_86")
    assert "sm86+sm89" in str(done.exception)


def test_build_bundle__warns_that_a_decision_which_was_set_is_gone(
    made: Path, fp32_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = shutil.copytree(made, tmp_path / "b")
    assert CliRunner().invoke(cli, ["set-decision", str(bundle), "--threshold", "0.9"]).exit_code == 0
    for expected in (1, 0):
        caplog.clear()
        with caplog.at_level("WARNING", logger="dgsnet"):
            build_bundle(fp32_onnx, bundle, BundleOptions(engine=SMALL))
        said = [r for r in caplog.records if "set by set-decision --threshold 0.9, is gone" in r.message]
        assert len(said) == expected
        assert manifest(bundle).decision.threshold == 0.5


RTX = replace(JETSON, file="engines/a.engine", backend="tensorrt-rtx", targets=("sm_86",))
PLAN = PlannedEngine("tensorrt-rtx", "fp16", ("sm_86", "sm_89"), RTX.profiles)
OTHER_RANGE = replace(RTX, file="engines/b.engine", profiles=((1, 1, 1),))


@pytest.mark.parametrize(
    ("entries", "planned", "lost"),
    [
        ([RTX], [PLAN], []),
        ([RTX], [replace(PLAN, profiles=((1, 1, 1),))], []),
        ([RTX], [replace(PLAN, precision="fp32")], [RTX.file]),
        ([RTX], [replace(PLAN, backend="tensorrt")], [RTX.file]),
        ([RTX], [replace(PLAN, targets=("sm_89",))], [RTX.file]),
        ([RTX], [], [RTX.file]),
        ([replace(RTX, verified="failed")], [], []),
        ([RTX, OTHER_RANGE], [PLAN], [OTHER_RANGE.file]),
        ([RTX, OTHER_RANGE], [replace(PLAN, profiles=((1, 2, 3),))], [RTX.file, OTHER_RANGE.file]),
        ([RTX, JETSON], [PLAN], [JETSON.file]),
    ],
    ids=[
        "again", "another-range", "precision", "backend", "target", "none", "failed", "two-ranges",
        "a-third-range", "of-two",
    ],
)  # fmt: skip
def test_engines_lost__names_what_no_new_engine_stands_for(
    entries: list[EngineEntry],
    planned: list[PlannedEngine],
    lost: list[str],
    made: Path,
    tmp_path: Path,
) -> None:
    bundle = shutil.copytree(made, tmp_path / "bundle")
    for entry in entries:
        add(bundle, entry)
    assert [entry.file for entry in engines_lost(bundle, planned)] == lost


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("x"), lambda path: None])
def test_engines_lost__of_what_is_no_bundle_is_nothing(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / "b")
    assert engines_lost(tmp_path / "b", []) == []
