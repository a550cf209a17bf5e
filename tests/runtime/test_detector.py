"""The Detector from files to verdicts, over the real ONNX Runtime."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import set_external_data
from PIL import Image

from runtime.detector import Detector
from runtime.errors import EngineLoadError, ManifestError, MissingDependencyError, SelfTestError, UsageError
from runtime.patches.selection import select_patches
from runtime.pictures.mosaics import PictureMosaics, mosaic_from_picture

KEYS = [
    "schema", "path", "label", "probability", "logit", "threshold", "margin", "uncertain", "backend",
    "engine", "views", "ms", "error",
]  # fmt: skip


@pytest.fixture
def detector(bundle: Path) -> Iterator[Detector]:
    with Detector.open(bundle) as opened:
        yield opened


def test_predict__gives_the_verdicts_of_the_graph(
    detector: Detector, pictures: list[Path], tiny_reference: Callable[..., Any]
) -> None:
    found = detector.predict(pictures)
    mosaics = np.stack([select_patches(np.asarray(Image.open(path))) for path in pictures])
    expected = tiny_reference(mosaics)[0]
    assert np.abs([d.logit for d in found] - expected).max() < 1e-5
    assert [d.path for d in found] == [str(path) for path in pictures]
    assert {d.label for d in found} == {"real", "generated"}
    for detection, logit in zip(found, expected, strict=True):
        assert detection.probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-3)
        assert detection.label == ("generated" if logit >= 0 else "real")
        assert (detection.backend, detection.engine, detection.views) == ("onnxruntime:cpu", "model", 1)


def test_predict__applies_the_bundles_decision(
    bundle: Path, pictures: list[Path], reseal: Callable[..., None]
) -> None:
    with Detector.open(bundle) as detector:
        plain = detector.predict(pictures)
    reseal(bundle, decision={"threshold": 0.9, "temperature": 2.0, "uncertain": [0.0, 1.0]})
    with Detector.open(bundle) as detector:
        strict = detector.predict(pictures)
    for before, after in zip(plain, strict, strict=True):
        assert after.logit == pytest.approx(before.logit, abs=1e-5)
        assert after.margin == pytest.approx(before.logit - 2.0 * np.log(9.0), abs=1e-5)
        assert after.uncertain
        assert not before.uncertain


def test_predict__uses_the_permutation_of_the_manifest(
    bundle: Path, pictures: list[Path], reseal: Callable[..., None]
) -> None:
    content = json.loads((bundle / "manifest.json").read_text())["preprocessing"]
    with Detector.open(bundle) as detector:
        before = detector.predict(pictures[:1])[0].logit
    # Another patch lands in the corner that the tiny graph looks at.
    reseal(bundle, preprocessing=content | {"permutation": content["permutation"][::-1]})
    with Detector.open(bundle) as detector:
        assert abs(detector.predict(pictures[:1])[0].logit - before) > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, None])
def test_predict__keeps_order_and_length_around_bad_items(
    bundle: Path, pictures: list[Path], tmp_path: Path, batch_size: int | None
) -> None:
    (tmp_path / "truncated.png").write_bytes(pictures[0].read_bytes()[:500])
    thin = np.zeros((400, 1, 3), np.uint8)
    missing, truncated = tmp_path / "missing.png", tmp_path / "truncated.png"
    items = [pictures[0], missing, pictures[1], truncated, 5, thin, tmp_path, *pictures, b""]
    with Detector.open(bundle, batch_size=batch_size) as detector:
        found = detector.predict(items)
    failed = [detection.error is not None for detection in found]
    assert failed == [False, True, False, True, True, True, True, *[False] * 6, True]
    assert found[7].logit == pytest.approx(found[0].logit, abs=1e-5)
    for detection in found:
        if detection.error is not None:
            assert detection.error.code == "image"
            assert "\n" not in detection.error.message
            empty = {key: value for key, value in detection.to_json().items() if value is None}
            assert set(empty) >= set(KEYS) - {"schema", "path", "error"}


def test_predict__of_nothing_is_nothing(detector: Detector) -> None:
    assert detector.predict([]) == []


def test_predict__takes_all_kinds_of_items(detector: Detector, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    with Image.open(pictures[0]) as image:
        items = [str(pictures[0]), content, io.BytesIO(content), image, np.asarray(image)]
        found = detector.predict(items)
    assert [d.error for d in found] == [None] * 5
    assert len({round(d.logit, 3) for d in found}) == 1
    assert [d.path for d in found] == [str(pictures[0]), None, None, None, None]


def test_stream__works_on_endless_input_and_reads_only_a_little_ahead(
    detector: Detector, pictures: list[Path]
) -> None:
    taken = itertools.count()
    source = (pictures[next(taken) % len(pictures)] for _ in itertools.repeat(None))
    found = list(itertools.islice(detector.stream(source), 10))
    assert [d.path for d in found] == [str(pictures[i % 6]) for i in range(10)]
    assert next(taken) < 40


def test_stream__passes_on_what_the_iterable_raises(detector: Detector, pictures: list[Path]) -> None:
    def broken() -> Iterator[Path]:
        yield pictures[0]
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        list(detector.stream(broken()))


def test_stream__decodes_in_other_threads(
    detector: Detector, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()

    def record(item: Any, **options: Any) -> PictureMosaics:
        names.add(threading.current_thread().name)
        return mosaic_from_picture(item, **options)

    monkeypatch.setattr("runtime.pipeline.preparation.mosaic_from_picture", record)
    assert all(d.error is None for d in detector.predict(pictures))
    assert names
    assert all(name.startswith("dgsnet-decode") for name in names)


def test_predict__tries_a_failed_batch_one_by_one(
    detector: Detector, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = detector.predict(pictures)
    poison = select_patches(np.asarray(Image.open(pictures[2])))
    real = detector.backend.run
    sizes = []

    def run(images: np.ndarray) -> Any:
        sizes.append(len(images))
        if any(np.array_equal(image, poison) for image in images):
            raise EngineLoadError("out of memory on this picture")
        return real(images)

    monkeypatch.setattr(detector.backend, "run", run)
    found = detector.predict(pictures)
    assert sizes == [4, 1, 1, 1, 1, 2]
    assert [d.error is None for d in found] == [True, True, False, True, True, True]
    assert found[2].error.code == "engine-load"
    assert found[3].logit == pytest.approx(expected[3].logit, abs=1e-5)


def test_predict__never_passes_a_nan_on(
    detector: Detector, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = detector.backend.run
    monkeypatch.setattr(detector.backend, "run", lambda images: (real(images)[0] * np.nan, real(images)[1]))
    found = detector.predict(pictures[:2])
    assert [d.error.code for d in found] == ["spec", "spec"]
    json.dumps([d.to_json() for d in found], allow_nan=False)


def test_to_json__has_exactly_the_promised_keys(
    detector: Detector, pictures: list[Path], tmp_path: Path
) -> None:
    good, bad = (d.to_json() for d in detector.predict([pictures[0], tmp_path / "none.png"]))
    assert list(good) == KEYS
    assert list(bad) == KEYS
    assert good["schema"] == 1
    assert list(good["ms"]) == ["decode", "select", "infer"]
    assert all(value > 0 for value in good["ms"].values())
    assert good["error"] is None
    assert list(bad["error"]) == ["code", "message"]
    json.dumps([good, bad], allow_nan=False)


def test_to_json__carries_the_bytes_of_names_that_are_not_utf8(
    detector: Detector, pictures: list[Path], tmp_path: Path
) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(pictures[0], name)
    detection = detector.predict([os.fsdecode(name)])[0].to_json()
    assert detection["error"] is None
    assert detection["path"].endswith("/caf\ufffd.png")
    assert base64.b64decode(detection["path_base64"]) == name
    json.dumps(detection).encode("utf-8")


def test_open__reports_the_choice(detector: Detector) -> None:
    report = detector.backend_report
    assert report.name == "onnxruntime:cpu"
    assert [r.candidate for r in report.rejected] == ["tensorrt", "tensorrt-rtx", "onnxruntime:cuda"]
    assert detector.batch_size == 4


def test_open__prepacks_and_spins_unless_told_not_to(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(
        onnxruntime.SessionOptions, "add_session_config_entry", lambda _self, name, _value: names.append(name)
    )
    Detector.open(bundle).close()
    assert names == []
    Detector.open(bundle, prepack=False).close()
    assert sorted(names) == ["session.disable_prepacking", "session.intra_op.allow_spinning"]


def test_open__checks_batch_size_and_backend(bundle: Path) -> None:
    for size in (0, 9):
        with pytest.raises(UsageError, match="takes 1 to 8"):
            Detector.open(bundle, batch_size=size)
    with pytest.raises(UsageError, match="expected one of auto"):
        Detector.open(bundle, "magic")
    with pytest.raises(MissingDependencyError, match="holds no engine"):
        Detector.open(bundle, "tensorrt")


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_open__blames_the_damaged_file_not_the_engine(bundle: Path, name: str, share: float) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=f"{name}.*changed or damaged"):
        Detector.open(bundle)


def test_open__runs_and_verifies_weights_beside_the_model(
    bundle: Path, pictures: list[Path], reseal: Callable[..., None]
) -> None:
    with Detector.open(bundle) as detector:
        inline = [d.logit for d in detector.predict(pictures)]
    model = onnx.load(str(bundle / "model.onnx"))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    set_external_data(weights, "model.onnx.data")
    onnx.save(model, str(bundle / "model.onnx"))
    with pytest.raises(ManifestError, match=r"model\.onnx\.data is not listed"):
        Detector.open(bundle)
    reseal(bundle)
    with Detector.open(bundle) as detector:
        assert [d.logit for d in detector.predict(pictures)] == pytest.approx(inline, abs=1e-5)
    content = bytearray((bundle / "model.onnx.data").read_bytes())
    content[0] ^= 1
    (bundle / "model.onnx.data").write_bytes(content)
    with pytest.raises(ManifestError, match=r"model\.onnx\.data.*changed or damaged"):
        Detector.open(bundle)


def test_open__fails_on_logits_that_are_off(bundle: Path, reseal: Callable[..., None]) -> None:
    with np.load(bundle / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["logit"][1] += 2e-3
    np.savez(bundle / "golden.npz", **arrays)
    reseal(bundle)
    with pytest.raises(SelfTestError, match=r"golden logits: found a difference of 0\.002,"):
        Detector.open(bundle)
    Detector.open(bundle, selftest=False).close()


def test_open__needs_a_tolerance(bundle: Path, reseal: Callable[..., None]) -> None:
    reseal(bundle, tolerances={})
    with pytest.raises(ManifestError, match="tolerances has no fp32_max_abs_logit"):
        Detector.open(bundle)
