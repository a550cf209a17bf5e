"""Graphs and bundles on disk, changed as a builder with a fault in it would make them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy
from runtime.bundle.manifest import MODEL_FP16_NAME, MODEL_NAME, manifest_bytes

PLAIN_POLICY = PrecisionPolicy()


def write_graphs(folder: Path, model: Any, policy: PrecisionPolicy = PLAIN_POLICY) -> tuple[Path, Path]:
    """Writes a model and its FP16 form under a bundle's names, and returns (FP32, FP16)."""
    fp32, fp16 = folder / MODEL_NAME, folder / MODEL_FP16_NAME
    onnx.save(model, fp32)
    fp16_from_fp32(fp32, fp16, policy)
    return fp32, fp16


def weight(model: Any, name: str) -> Any:
    """Returns the weight of that name, as a tensor of the model."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def set_weight(model: Any, name: str, change: Callable[[np.ndarray], Any], dtype: Any = None) -> None:
    """Puts what ``change`` makes of a copy of a weight in its place; ``dtype`` None keeps its type."""
    tensor = weight(model, name)
    values = numpy_helper.to_array(tensor)
    changed = np.asarray(change(values.copy()), dtype or values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, name))


def put_values(model: Any, name: str, where: Any, new: Any) -> None:
    """Replaces a part of a weight, which ``where`` indexes."""

    def put(values: np.ndarray) -> np.ndarray:
        values[where] = new
        return values

    set_weight(model, name, put)


def scale_values(model: Any, name: str, where: Any, factor: float) -> None:
    """Multiplies a part of a weight, which ``where`` indexes."""
    put_values(model, name, where, numpy_helper.to_array(weight(model, name))[where] * factor)


def grow_hidden_unit(model: Any, block: int) -> None:
    """One hidden unit reaches about 450,000 and is scaled back by the next product: FP32 sees no change."""
    scale_values(model, f"block_{block}/up.weight", np.s_[:, 5], 2.0**18)
    scale_values(model, f"block_{block}/up.bias", np.s_[5], 2.0**18)
    scale_values(model, f"block_{block}/down.weight", np.s_[5, :], 2.0**-18)


def insert_after(model: Any, node: Any, added: Sequence[Any]) -> None:
    """Puts nodes behind one that the graph has."""
    nodes = list(model.graph.node)
    place = nodes.index(node) + 1
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *added, *nodes[place:]])


def edit_graph(bundle: Path, edit: Callable[[Any], None], name: str = MODEL_NAME) -> None:
    """Changes a graph of a bundle, and the manifest with it."""
    model = onnx.load(bundle / name)
    edit(model)
    onnx.save(model, bundle / name)
    reseal(bundle)


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes a bundle's manifest, which gets the right digest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    (bundle / "manifest.json").write_bytes(manifest_bytes(manifest))


def reseal(bundle: Path) -> None:
    """Makes the manifest agree with the files."""

    def agree(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            content = (bundle / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    edit_manifest(bundle, agree)
