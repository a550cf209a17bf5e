"""The self-test notices every way in which an engine can be wrong, and remembers what it may."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.base import Backend
from runtime.bundle.golden import Golden, read_golden
from runtime.detector import Detector
from runtime.errors import ManifestError, SelfTestError
from runtime.machine import CudaDevice
from runtime.selftest import opening, stamps
from runtime.selftest.checks import are_rows_in_order
from runtime.selftest.laws import check_count, full_self_test, quick_self_test
from runtime.selftest.stamps import Stamp

TOLERANCE = 1e-3


@pytest.fixture
def detector(bundle: Path) -> Iterator[Detector]:
    with Detector.open(bundle) as opened:
        yield opened


@pytest.fixture
def golden(detector: Detector) -> Golden:
    return read_golden(detector.bundle.file("golden.npz"), 4)


class Wrong(Backend):
    """A real engine whose output passes through a defect: ``change(images, logit, embedding)``."""

    def __init__(self, real: Backend, change: Callable[..., Any]) -> None:
        super().__init__(real.name, real.embed_dim, real.profile)
        self._real = real
        self._change = change

    def _infer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logit, embedding = self._real.run(images)
        return self._change(images, logit.copy(), embedding.copy())

    def close(self) -> None:
        pass


def swapped(_images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    return logit[::-1].copy(), embedding[::-1].copy()


def last_two_swapped(_images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    order = np.arange(len(logit))
    if len(order) > 3:
        order[[-1, -2]] = order[[-2, -1]]
    return logit[order], embedding[order]


def leaks_neighbours(images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    return logit + np.float32(0.01) * np.float32(images[1:].mean() if len(images) > 1 else 0), embedding


def sees_padding(images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    black = np.float32((images.reshape(len(images), -1).max(axis=1) == 0).sum())
    return logit + np.float32(0.1) * black, embedding


def depends_on_position(_images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    return logit + np.float32(0.01) * np.arange(len(logit), dtype=np.float32), embedding


def alone_differs(_images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    return (logit + np.float32(0.5) if len(logit) == 1 else logit), embedding


def nan(_images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    return logit * np.float32(np.nan), embedding


def large_batches_differ(_images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
    return (logit + np.float32(0.5) if len(logit) == 8 else logit), embedding


PROFILES = ((1, 4, 8),)


def failed_laws(detector: Detector, golden: Golden, change: Callable[..., Any]) -> set[str]:
    checks = full_self_test(Wrong(detector.backend, change), golden, TOLERANCE, PROFILES)
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (swapped, "row order"),
        (alone_differs, "batch law"),
        (nan, "golden logits"),
        (depends_on_position, "golden logits"),
    ],
)
def test_quick_self_test__names_what_is_wrong(
    detector: Detector, golden: Golden, change: Callable[..., Any], law: str
) -> None:
    quick_self_test(detector.backend, golden, TOLERANCE)
    with pytest.raises(SelfTestError, match=law):
        quick_self_test(Wrong(detector.backend, change), golden, TOLERANCE)


def test_quick_self_test__runs_three_images(detector: Detector, golden: Golden) -> None:
    sizes = []

    def record(images: np.ndarray, logit: np.ndarray, embedding: np.ndarray) -> Any:
        sizes.append(len(images))
        return logit, embedding

    quick_self_test(Wrong(detector.backend, record), golden, TOLERANCE)
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("change", "laws"),
    [
        (swapped, {"golden logits, batch 4", "golden logits, batch 8", "permuted rows, batch 8"}),
        (last_two_swapped, {"golden logits, batch 4", "golden logits, batch 8"}),
        (leaks_neighbours, {"batch law, batch 4", "batch law, batch 8"}),
        (sees_padding, {"padded rows, batch 4", "padded rows, batch 8"}),
        (depends_on_position, {"identical rows, batch 4", "permuted rows, batch 4", "batch law, batch 8"}),
        (alone_differs, {"golden logits, batch 1", "batch law, batch 4"}),
        (nan, {"golden logits, batch 1", "identical rows, batch 8"}),
        (large_batches_differ, {"golden logits, batch 8", "batch law, batch 8", "identical rows, batch 8"}),
    ],
)
def test_full_self_test__finds_each_defect(
    detector: Detector, golden: Golden, change: Callable[..., Any], laws: set[str]
) -> None:
    failed = failed_laws(detector, golden, change)
    assert laws <= failed, failed
    if change is sees_padding:
        assert failed == laws
    if change is large_batches_differ:
        assert not any("batch 4" in name for name in failed)


def test_full_self_test__covers_every_size_of_every_profile(detector: Detector, golden: Golden) -> None:
    checks = list(full_self_test(detector.backend, golden, TOLERANCE, PROFILES))
    assert all(check.passed and check.max_abs_logit < 1e-4 for check in checks)
    laws = ("golden logits", "batch law", "identical rows", "permuted rows", "padded rows")
    expected = ["golden logits, batch 1", *(f"{law}, batch {size}" for size in (4, 8) for law in laws)]
    assert [check.name for check in checks] == expected
    profiles = ((1, 1, 1), (2, 3, 7))
    checks = list(full_self_test(detector.backend, golden, TOLERANCE, profiles))
    assert len(checks) == check_count(detector.backend, profiles) == 16
    assert all(check.passed for check in checks)


def test_full_self_test__fills_batches_up_to_the_minimum(
    bundle: Path, reseal: Callable[..., None], engine_entry: Callable[..., Any]
) -> None:
    reseal(bundle, engines=[engine_entry("model.onnx", "onnxruntime", profiles=[[4, 4, 40]])])
    with Detector.open(bundle) as detector:
        golden = read_golden(bundle / "golden.npz", 4)
        checks = list(full_self_test(detector.backend, golden, TOLERANCE, [(4, 4, 40)]))
    assert all(check.passed for check in checks)
    assert checks[-1].name == "padded rows, batch 40"


def test_rows_in_order__needs_no_tolerance() -> None:
    rows = np.random.default_rng(2).normal(size=(6, 8)).astype(np.float32)
    assert are_rows_in_order(rows + np.float32(0.05), rows)
    for order in ([1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4], [3, 1, 2, 0, 4, 5], [5, 4, 3, 2, 1, 0]):
        assert not are_rows_in_order(rows[order], rows)
    assert are_rows_in_order(rows[[0, 0]], rows[[0, 0]])


@pytest.fixture
def as_if_on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The CPU engine passes for one on a GPU: only where it is remembered is under test, not a GPU."""
    driver = tmp_path / "driver"
    driver.write_text("NVRM version: 580.1")
    monkeypatch.setattr(opening, "is_on_gpu", lambda report: True)
    monkeypatch.setattr(stamps, "cuda_device", lambda: CudaDevice("a GPU", "sm_90"))
    monkeypatch.setattr(stamps, "_DRIVER_FILES", (str(driver),))
    return driver


def test_open__runs_every_law_once_per_machine_on_a_gpu(
    bundle: Path, as_if_on_gpu: Path, monkeypatch: pytest.MonkeyPatch, reseal: Callable[..., None]
) -> None:
    counts = {"full": 0, "quick": 0}

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            counts[name] += 1
            return real(*arguments)

        return run

    monkeypatch.setattr(opening, "full_self_test", counting("full", full_self_test))
    monkeypatch.setattr(opening, "quick_self_test", counting("quick", quick_self_test))

    def opened() -> tuple[int, int]:
        Detector.open(bundle).close()
        return counts["full"], counts["quick"]

    assert opened() == (1, 0)
    assert opened() == (1, 1)
    as_if_on_gpu.write_text("NVRM version: 581.0")
    assert opened() == (2, 1)
    monkeypatch.setattr(stamps, "cuda_device", lambda: CudaDevice("another GPU", "sm_90"))
    assert opened() == (3, 1)
    content = json.loads((bundle / "manifest.json").read_text())
    reseal(bundle, provenance={"note": "another digest"} | content["provenance"])
    assert opened() == (4, 1)


def test_open__remembers_no_failure_and_no_unknown_machine(
    bundle: Path, as_if_on_gpu: Path, tmp_path: Path, reseal: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def remembered() -> list[Path]:
        return list((tmp_path / "cache" / "selftest").glob("*"))

    with np.load(bundle / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["logit"][9] += 0.5  # out of the quick test's sight
    np.savez(bundle / "golden.npz", **arrays)
    reseal(bundle)
    for _ in range(2):
        with pytest.raises(SelfTestError, match="golden logits, batch 1"):
            Detector.open(bundle)
    assert remembered() == []
    arrays["logit"][9] -= 0.5
    np.savez(bundle / "golden.npz", **arrays)
    reseal(bundle)
    as_if_on_gpu.unlink()
    Detector.open(bundle).close()
    assert remembered() == []
    as_if_on_gpu.write_text("known")
    Detector.open(bundle, verify="off").close()
    assert remembered() == []
    Detector.open(bundle).close()
    assert len(remembered()) == 1


def test_stamp__tells_engines_of_one_bundle_apart(detector: Detector, as_if_on_gpu: Path) -> None:
    manifest, report = detector.bundle.manifest, detector.backend_report
    Stamp(manifest, report, None).keep()
    assert Stamp(manifest, report, None).exists()
    other = replace(report, entry=replace(report.entry, file="engines/other.engine"))
    assert not Stamp(manifest, other, None).exists()


def test_open__does_not_log_or_write_on_a_cpu(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        Detector.open(bundle).close()
    assert "full self-test" not in caplog.text
    assert not (tmp_path / "cache" / "selftest").exists()


def test_open__a_manifest_cannot_loosen_the_self_test(bundle: Path, reseal: Callable[..., None]) -> None:
    with np.load(bundle / "golden.npz") as stored:
        arrays = dict(stored)
    np.savez_compressed(bundle / "golden.npz", **arrays | {"logit": arrays["logit"] + np.float32(0.01)})
    reseal(bundle, tolerances={"fp32_max_abs_logit": 1000})
    with pytest.raises(SelfTestError, match=r"golden logits: found a difference of 0\.01, .* at most 0\.001"):
        Detector.open(bundle)


def test_open__refuses_a_golden_file_of_another_length_than_stated(
    bundle: Path, reseal: Callable[..., None]
) -> None:
    golden = {"file": "golden.npz", "reference": "onnx-fp32"}
    reseal(bundle, golden=golden | {"count": 16})
    Detector.open(bundle).close()
    reseal(bundle, golden=golden | {"count": 15})
    with pytest.raises(ManifestError, match=r"found 16 images, .* 15 as the manifest states"):
        Detector.open(bundle)
