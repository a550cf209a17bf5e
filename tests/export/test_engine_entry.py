"""What a manifest says of an engine beyond its first keys: optional, checked, and absent from older ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import manifest_bytes, parse_manifest
from runtime.errors import ManifestError

OLDER = EngineEntry(
    file="model.onnx",
    backend="onnxruntime",
    precision="fp32",
    profiles=((1, 8, 32), (1, 1, 1)),
    targets=("cpu",),
    version="1.23.0",
    gpu=None,
    driver=None,
    verified="passed",
)
NEWER = replace(
    OLDER,
    file="engines/a.engine",
    backend="tensorrt",
    hardware_compatible="ampere-plus",
    version_compatible=True,
    build_seconds=12.5,
    build_peak_bytes=10**9,
)


@pytest.fixture(scope="module")
def manifest_content(sound: Path) -> dict[str, Any]:
    """The manifest of a bundle that build-engine made."""
    content = json.loads((sound / "manifest.json").read_bytes())
    content["files"]["engines/a.engine"] = {"sha256": "0" * 64, "size": 1}
    return dict(content)


def test_engine_entry__survives_the_manifest(manifest_content: dict[str, Any]) -> None:
    written = manifest_bytes(manifest_content | {"engines": [OLDER.to_json(), NEWER.to_json()]})
    assert parse_manifest(written).engines == (OLDER, NEWER)


def test_engine_entry__without_the_newer_keys_is_what_it_was() -> None:
    assert set(OLDER.to_json()) == {
        "file", "backend", "precision", "profiles", "targets", "version", "gpu", "driver", "verified",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"hardware_compatible": "none"},
        {"hardware_compatible": ["ampere-plus"]},
        {"version_compatible": 1},
        {"version_compatible": False},
        {"build_seconds": -1.0},
        {"build_seconds": "3"},
        {"build_peak_bytes": 1.5},
        {"build_peak_bytes": True},
        {"build_peak_bytes": 2**60},
        {"build_minutes": 3},
    ],
    ids=str,
)
def test_engine_entry__refuses_what_build_engine_does_not_write(
    change: dict[str, Any], manifest_content: dict[str, Any]
) -> None:
    with pytest.raises(ManifestError, match=next(iter(change))):
        manifest_bytes(manifest_content | {"engines": [OLDER.to_json(), NEWER.to_json() | change]})


@pytest.mark.parametrize("key", ["profiles", "gpu", "verified"])
def test_engine_entry__the_first_keys_stay_required(key: str, manifest_content: dict[str, Any]) -> None:
    lacking = {name: value for name, value in NEWER.to_json().items() if name != key}
    with pytest.raises(ManifestError, match=f"missing or unknown keys: {key}"):
        manifest_bytes(manifest_content | {"engines": [OLDER.to_json(), lacking]})
