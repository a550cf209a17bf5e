"""A tiny but complete bundle, run by the real ONNX Runtime, and pictures to give it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.bundle.manifest import graph_json, manifest_bytes
from runtime.decision import Decision
from runtime.spec import Preprocessing
from runtime.tolerances import TOLERANCES

EMBED_DIM = 4
OPSET = 18


def tiny_model() -> Any:
    """Returns an ONNX model of the contract: means of the channels and of one corner, and a linear logit."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([[9.0], [-4.0], [2.0], [5.0]], dtype=np.float32)
    constants = {
        "scale": np.float32(1 / 255),
        "axis": np.array([1], dtype=np.int64),
        "starts": np.array([0, 0, 0], dtype=np.int64),
        "ends": np.array([32, 32, 1], dtype=np.int64),
        "corner_axes": np.array([1, 2, 3], dtype=np.int64),
        "weights": weights,
        "bias": np.float32(-6.0),
        "last": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        # Two short sums instead of a long one: in float32 a mean of 50176 pixels is off by 1e-4.
        helper.make_node("ReduceMean", ["scaled", "axis"], ["columns"], keepdims=0),
        helper.make_node("ReduceMean", ["columns", "axis"], ["channels"], keepdims=0),
        helper.make_node("Slice", ["scaled", "starts", "ends", "corner_axes"], ["cell"]),
        helper.make_node("ReduceMean", ["cell", "axis"], ["cell_columns"], keepdims=0),
        helper.make_node("ReduceMean", ["cell_columns", "axis"], ["corner"], keepdims=0),
        helper.make_node("Concat", ["channels", "corner"], ["embedding"], axis=1),
        helper.make_node("MatMul", ["embedding", "weights"], ["product"]),
        helper.make_node("Squeeze", ["product", "last"], ["flat"]),
        helper.make_node("Add", ["flat", "bias"], ["logit"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 224, 224, 3])],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", EMBED_DIM]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def tiny_reference(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns logit and embedding of the tiny model, computed by numpy in float64."""
    scaled = images.astype(np.float64) / 255
    embedding = np.concatenate([scaled.mean(axis=(1, 2)), scaled[:, :32, :32, :1].mean(axis=(1, 2))], axis=1)
    logit = embedding @ np.array([9.0, -4.0, 2.0, 5.0]) - 6.0
    return logit.astype(np.float32), embedding.astype(np.float32)


def engine_entry(file: str, backend: str, **changes: Any) -> dict[str, Any]:
    """Returns one line of a manifest's engines."""
    entry = {
        "file": file,
        "backend": backend,
        "precision": "fp32",
        "profiles": [[1, 4, 8]],
        "targets": ["cpu", "cuda"],
        "version": "1.31.1",
        "gpu": None,
        "driver": None,
        "verified": "passed",
    }
    return entry | changes


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Writes manifest.json with fresh hashes of every file in ``folder``."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    content["files"] = {
        p.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "size": p.stat().st_size,
        }
        for p in files
        if p.relative_to(folder).parts[0] != "parity"
    }
    (folder / "manifest.json").write_bytes(manifest_bytes(content))


def manifest_content(folder: Path) -> dict[str, Any]:
    """Returns the JSON object of a bundle's manifest."""
    return json.loads((folder / "manifest.json").read_text())


def write_tiny_bundle(folder: Path, *, engines: list[dict[str, Any]] | None = None) -> Path:
    """Writes a complete bundle: a small graph, 16 golden mosaics, one onnxruntime engine by default."""
    import onnx

    folder.mkdir(parents=True)
    onnx.save(tiny_model(), str(folder / "model.onnx"))
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (16, 224, 224, 3), dtype=np.uint8) // rng.integers(
        1, 5, (16, 1, 1, 3), dtype=np.uint8
    )
    logit, embedding = tiny_reference(images)
    np.savez_compressed(folder / "golden.npz", images=images, logit=logit, embedding=embedding)
    engines = [engine_entry("model.onnx", "onnxruntime")] if engines is None else engines
    for entry in engines:
        if not (folder / entry["file"]).exists():
            (folder / entry["file"]).parent.mkdir(exist_ok=True)
            (folder / entry["file"]).write_bytes(b"a plan that nothing here can run")
    content = {
        "schema": 1,
        "graph": graph_json(EMBED_DIM, OPSET),
        "preprocessing": Preprocessing().to_json(),
        "backbone": {"name": "tiny"},
        "classes": ["real", "generated"],
        "decision": Decision().to_json(),
        "tolerances": TOLERANCES,
        "golden": {"file": "golden.npz", "reference": "onnx-fp32"},
        "provenance": {},
        "engines": engines,
    }
    seal(folder, content)
    return folder


@pytest.fixture(scope="session")
def _bundle_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("template") / "bundle")


@pytest.fixture
def bundle(_bundle_template: Path, tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    return shutil.copytree(_bundle_template, tmp_path / "bundle")


@pytest.fixture(name="write_tiny_bundle")
def _write_tiny_bundle() -> Callable[..., Path]:
    return write_tiny_bundle


@pytest.fixture(name="engine_entry")
def _engine_entry() -> Callable[..., dict[str, Any]]:
    return engine_entry


@pytest.fixture(name="reseal")
def _reseal() -> Callable[..., None]:
    """Changes a manifest and gives it fresh hashes and digest: damage that only content checks see."""

    def reseal(folder: Path, **changes: Any) -> None:
        seal(folder, manifest_content(folder) | changes)

    return reseal


@pytest.fixture(name="tiny_reference")
def _tiny_reference() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return tiny_reference


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 [256, 320, 3] with patches of very different entropy."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (256, 320, 3), dtype=np.uint8)
    ramp = np.linspace(0, 1, 320)[None, :, None]
    return (noise * ramp + 60 * (1 - ramp)).astype(np.uint8)


@pytest.fixture
def pictures(tmp_path: Path, picture: np.ndarray) -> list[Path]:
    """Six different PNG files, dark and bright in turn, so that the tiny graph gives both labels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        dark = picture // (index + 1)
        Image.fromarray(255 - dark if index % 2 else dark).save(path)
    return paths


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGSNET_CACHE", str(tmp_path / "cache"))
