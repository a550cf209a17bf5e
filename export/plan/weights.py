"""How large the graphs of a source are or will be, without building or loading any of it."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.source import BUNDLE, ONNX, RUN, source_kind
from runtime.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MODEL_FP16_NAME,
    MODEL_NAME,
    Manifest,
    parse_manifest,
)
from runtime.errors import CheckpointError
from runtime.spec import MOSAIC_SIDE

# The largest backbone that the authors publish checkpoints of; UnivFD's file holds a head alone.
_OFFICIAL_BACKBONE = "ViT-L-14"
_OFFICIAL_BYTES = 1_216_000_000


@dataclass(frozen=True)
class GraphSizes:
    """The bytes of a model's two graphs, weights included.

    Attributes:
        fp32_bytes: of model.onnx.
        fp16_bytes: of model_fp16.onnx.
        known_from: what the figures were read from.
    """

    fp32_bytes: int
    fp16_bytes: int
    known_from: str


def graph_sizes(source: Path) -> GraphSizes:
    """Returns the sizes of the graphs that a source holds or will give.

    Args:
        source: a run, a bundle, a contract ONNX or the authors' .pth.

    Raises:
        UsageError: the source is none of these.
        ManifestError: the bundle's manifest is damaged.
        CheckpointError: the run's record cannot be read.
        SpecError: the ONNX file is damaged, or its weights are missing.
    """
    kind = source_kind(source)
    if kind == BUNDLE:
        with (source / MANIFEST_NAME).open("rb") as stream:
            manifest = parse_manifest(stream.read(MAX_MANIFEST_BYTES + 1))
        return GraphSizes(_listed(manifest, MODEL_NAME), _listed(manifest, MODEL_FP16_NAME), "its manifest")
    if kind == ONNX:
        return _halved(_onnx_bytes(source), "the file's size")
    if kind == RUN:
        return _of_run(source)
    return _halved(max(source.stat().st_size, _OFFICIAL_BYTES), f"its size, {_OFFICIAL_BACKBONE} at least")


def tower_bytes(config: dict[str, Any]) -> int | None:
    """Returns the FP32 bytes of the vision tower of an open_clip configuration, None if it has no ViT."""
    vision = config.get("vision_cfg", {})
    width, layers, patch = (vision.get(key) for key in ("width", "layers", "patch_size"))
    if not all(type(number) is int for number in (width, layers, patch)):
        return None
    ratio = float(vision.get("mlp_ratio", 4.0))
    block = (4 + 2 * ratio) * width**2 + (9 + ratio) * width
    tokens = (MOSAIC_SIDE // patch) ** 2 + 1
    rest = 3 * patch**2 * width + (tokens + 5) * width + width * int(config.get("embed_dim", width))
    return int(4 * (layers * block + rest))


def _listed(manifest: Manifest, name: str) -> int:
    """Returns the bytes of a graph and its data file; 0 where the bundle does not hold it."""
    return sum(manifest.files[file].size for file in (name, f"{name}.data") if file in manifest.files)


def _onnx_bytes(path: Path) -> int:
    from export.onnx_files import external_files, load_model

    beside = external_files(load_model(path, weights=False))
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


def _of_run(run: Path) -> GraphSizes:
    try:
        record = json.loads((run / "checkpoint.json").read_text(encoding="utf-8"))
        name = str(record["backbone"]["name"])
        stored = (run / "checkpoint.safetensors").stat().st_size
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise CheckpointError(
            f"{run}: its checkpoint cannot be read ({err}); train or import it again"
        ) from err
    config = _open_clip_config(name)
    tower = tower_bytes(config) if config is not None else None
    # A base that no hub has lies inside the checkpoint; of the others it holds the adapters alone.
    return _halved(max(stored, tower or 0), name if tower else "the size of its weights")


def _open_clip_config(name: str) -> dict[str, Any] | None:
    """Returns open_clip's description of a model, read from its file: importing it would load torch."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        file = Path(folder, "model_configs", f"{name.replace('/', '-')}.json")
        if file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
    return None


def _halved(fp32_bytes: int, known_from: str) -> GraphSizes:
    return GraphSizes(fp32_bytes, fp32_bytes // 2, known_from)
