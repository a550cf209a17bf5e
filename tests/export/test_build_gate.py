"""What build-engine does with its own gate: publish, refuse, or mark as failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from export.build import BundleOptions, build_bundle
from export.commands.build_engine import build_engine
from export.engine.options import BuildOptions
from export.extend import add_backends
from export.inspect.onnx_graph import onnx_facts
from export.precision.policy import PrecisionPolicy
from runtime.console import run_cli
from runtime.detector import Detector
from runtime.errors import GateFailedError, MissingDependencyError
from tests.export.editing import grow_hidden_unit

SMALL = ((1, 2, 4),)


@pytest.fixture
def source(vit: Callable[..., Any], tmp_path: Path) -> Path:
    onnx.save(vit(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def tight(vit: Callable[..., Any], tmp_path: Path) -> Path:
    """One hidden unit of block 1 is beyond FP16's range."""
    model = vit()
    grow_hidden_unit(model, 1)
    onnx.save(model, tmp_path / "tight.onnx")
    return tmp_path / "tight.onnx"


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(_Wrapped(), [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


class _Wrapped(type(build_engine)):  # type: ignore[misc]
    """The command with the exit codes of the real program."""

    def __init__(self) -> None:
        super().__init__("build-engine", params=build_engine.params, callback=build_engine.callback)

    def main(self, args: Any = None, **_: Any) -> Any:
        import sys

        before, sys.argv = sys.argv, ["export", *args]
        try:
            run_cli(build_engine, "python -m export")
        finally:
            sys.argv = before


def test_build__publishes_what_passed_with_its_reports(source: Path, tmp_path: Path) -> None:
    report = build_bundle(source, tmp_path / "b", BundleOptions(engine=BuildOptions(profiles=SMALL)))
    assert report.passed
    assert [entry.verified for entry, _ in report.engines] == ["passed", "not-run"]
    content = json.loads((tmp_path / "b" / "parity" / "parity.json").read_text())
    assert content["status"] == "passed"
    assert {hop["hop"]: hop["status"] for hop in content["hops"]} == {
        "pytorch": "skipped",
        "merged": "skipped",
        "onnx-fp32": "first",
        "fp16-emulated": "compared",
        "engine onnxruntime:cpu": "compared",
        "engine onnxruntime:cuda": "skipped",
    }
    assert content["overflow_guard"]["status"] == "passed"
    assert (tmp_path / "b" / "parity" / "report.html").read_bytes().startswith(b"<!doctype html>")
    assert b"<testsuites" in (tmp_path / "b" / "parity" / "junit.xml").read_bytes()


def test_build__refuses_an_overflow_and_the_advice_cures_it(tight: Path, tmp_path: Path) -> None:
    options = BuildOptions(profiles=SMALL)
    with pytest.raises(GateFailedError, match=r"first in block_1, node block_1/up.*--fp32-blocks 1"):
        build_bundle(tight, tmp_path / "b", BundleOptions(engine=options))
    assert not (tmp_path / "b").exists()
    kept = BuildOptions(profiles=SMALL, policy=PrecisionPolicy(fp32_blocks=(1,)))
    report = build_bundle(tight, tmp_path / "b", BundleOptions(engine=kept))
    assert report.passed
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["provenance"]["precision"]["policy"]["fp32_blocks"] == [1]
    shown = onnx_facts(tmp_path / "b" / "model_fp16.onnx")["weighted"]
    assert shown["policy"]["fp32_blocks"] == [1]
    assert shown["fp16_share"] == 1.0
    assert {name.partition("/")[0] for name in shown["kept_fp32"]} == {"block_1", "projection", "head"}


def test_build__writes_what_failed_marked_when_asked(tight: Path, tmp_path: Path) -> None:
    options = BundleOptions(engine=BuildOptions(profiles=SMALL), allow_failed=True)
    report = build_bundle(tight, tmp_path / "b", options)
    assert not report.passed
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert {entry["verified"] for entry in manifest["engines"]} == {"failed"}
    content = json.loads((tmp_path / "b" / "parity" / "parity.json").read_text())
    assert content["overflow_guard"]["status"] == "failed"
    with pytest.raises(MissingDependencyError, match="failed its verification"):
        Detector.open(tmp_path / "b")


def test_add_backends__builds_by_the_policy_of_the_bundle(tight: Path, tmp_path: Path) -> None:
    """By the default policy, too little of this FP16 graph would be FP16."""
    kept = BuildOptions(profiles=SMALL, policy=PrecisionPolicy(fp32_blocks=(1,)))
    build_bundle(tight, tmp_path / "b", BundleOptions(engine=kept))
    options = BuildOptions(profiles=SMALL)
    ((entry, state),) = add_backends(tmp_path / "b", ("tensorrt-rtx",), options, name="")
    assert entry.verified == "not-run"
    assert "100.0 % of weighted layers in FP16" in state


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fp32-blocks", "7"), "found 7, the graph has blocks 0, 1"),
        (("--fp32-blocks", "x"), "expected block numbers"),
        (("--fp32-layers", "nothing/*"), "'nothing/*' matches none"),
        (("--calibration", "no-such-folder"), "no such folder"),
        (("--min-fp16-share", "1.5"), "expected a share"),
    ],
)
def test_build_engine__says_what_is_wrong_with_a_precision_option(
    source: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, said = run(source, "-o", tmp_path / "b", *words)
    assert (code, message in said) == (2, True), said
    assert not (tmp_path / "b").exists()


def test_build_engine__takes_calibration_pictures_and_keeps_none(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (300, 260, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    code, _, said = run(source, "-o", tmp_path / "b", "--calibration", folder, "--max-batch", 8)
    assert code == 0, said
    content = json.loads((tmp_path / "b" / "parity" / "parity.json").read_text())
    assert content["overflow_guard"]["count"] == 3
    assert b"pictures" not in (tmp_path / "b" / "manifest.json").read_bytes()


def test_build_engine__exits_1_with_a_failed_bundle(tight: Path, tmp_path: Path) -> None:
    code, out, said = run(tight, "-o", tmp_path / "b", "--allow-failed-parity", "--max-batch", 8)
    assert code == 1, said
    assert "bundle:" in out
    assert "marked so" in said
    code, _, said = run(tmp_path / "b", "--backend", "tensorrt-rtx", "--fp32-blocks", "1")
    assert code == 2
    assert "--fp32-blocks: a bundle as source is extended in place" in said
