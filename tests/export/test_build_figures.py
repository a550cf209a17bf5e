"""What a build took: kept beside the manifest, believed by nobody, and read from older manifests too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.bundle.add_engine import add_engine
from export.bundle.build_figures import BuildFigures, read_build_figures
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import Manifest
from runtime.bundle.opening import open_bundle

ENTRY = EngineEntry(
    "engines/a.engine", "tensorrt-rtx", "fp16", ((1, 2, 4),), ("sm_86",), "1.7.1.116", None, None, "not-run"
)
OLD = replace(ENTRY, file="engines/old.engine", build_seconds=12.5, build_peak_bytes=10**9)
FIGURES = BuildFigures(3.25, 5 * 10**8)


def manifest(bundle: Path) -> Manifest:
    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        return opened.manifest


def add(bundle: Path, entry: EngineEntry, figures: BuildFigures | None) -> EngineEntry:
    file = bundle.with_name("built.engine")
    file.write_bytes(b"an engine")
    return add_engine(bundle, file, entry, built_from=manifest(bundle).files, figures=figures)


def figures(bundle: Path) -> dict[str, BuildFigures]:
    return read_build_figures(bundle, manifest(bundle))


def test_add_engine__keeps_what_its_build_took_outside_of_the_digest(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    add(bundle, ENTRY, FIGURES)
    add(other, ENTRY, BuildFigures(99.0, None))
    assert manifest(bundle).digest == manifest(other).digest
    assert figures(bundle) == {ENTRY.file: BuildFigures(3.2, 5 * 10**8)}
    assert figures(other) == {ENTRY.file: BuildFigures(99.0, None)}


def test_add_engine__keeps_the_figures_of_engines_that_stay_and_drops_those_that_went(bundle: Path) -> None:
    add(bundle, OLD, None)
    add(bundle, ENTRY, FIGURES)
    again = add(bundle, ENTRY, BuildFigures(7.0, 1))
    assert figures(bundle) == {OLD.file: BuildFigures(12.5, 10**9), again.file: BuildFigures(7.0, 1)}
    assert again.file != ENTRY.file


def test_manifest__of_an_older_version_still_holds_them_and_they_are_read(bundle: Path) -> None:
    add(bundle, OLD, None)
    assert manifest(bundle).engines[-1] == OLD
    assert figures(bundle) == {OLD.file: BuildFigures(12.5, 10**9)}


@pytest.mark.parametrize(
    "content",
    [
        "", "5", "[]", "[" * 100_000, '{"schema": 2, "engines": {}}', '{"schema": 1, "engines": 5}',
        *[
            json.dumps({"schema": 1, "engines": {ENTRY.file: value}})
            for value in (5, {}, {"seconds": -1}, {"seconds": "3"}, {"seconds": True}, {"seconds": 2**60})
        ],
    ],
)  # fmt: skip
def test_read_build_figures__believes_nothing_that_no_build_writes(bundle: Path, content: str) -> None:
    add(bundle, ENTRY, FIGURES)
    (bundle / "parity" / "build.json").write_text(content)
    assert figures(bundle) == {}
    (bundle / "parity" / "build.json").unlink()
    assert figures(bundle) == {}
