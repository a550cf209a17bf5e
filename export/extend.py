"""Adding an engine for this machine to an existing bundle: in place, atomically, without torch."""

from __future__ import annotations

import tempfile
from pathlib import Path

from export.bundle.add_engine import add_engine, recover
from export.engine.builder import build_engine, require_buildable
from export.engine.naming import slug_from_text
from export.engine.options import BuildOptions
from export.engines import engine_name, graph_name, state_of
from runtime.bundle import open_bundle
from runtime.errors import UsageError
from runtime.manifest import EngineEntry


def add_backends(
    bundle: Path, backends: tuple[str, ...], options: BuildOptions, *, name: str
) -> list[tuple[EngineEntry, str]]:
    """Builds one engine per backend from the bundle's own graphs and adds it.

    Args:
        bundle: the bundle's folder; every hash is checked first.
        backends: "tensorrt" or "tensorrt-rtx".
        options: precision, batch sizes and targets.
        name: of the model in file names; "" takes the backbone's.

    Returns:
        The manifest's new entries, each with its state in words.

    Raises:
        ManifestError: the bundle is damaged.
        UsageError: a backend that needs no engine file.
        EngineBuildError, GateFailedError, MissingDependencyError: as in ``build_engine``.
    """
    if "onnxruntime" in backends:
        raise UsageError("onnxruntime runs a bundle's model.onnx as it is; name tensorrt or tensorrt-rtx")
    for backend in backends:
        require_buildable(options, backend=backend)
    recover(bundle)
    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        manifest = opened.manifest
        graph = opened.file(graph_name(options))
    slug = slug_from_text(name or str(manifest.raw["backbone"]["name"]))
    added = []
    for backend in backends:
        with tempfile.TemporaryDirectory(prefix="dgsnet-") as folder:
            built = build_engine(graph, Path(folder) / "new.engine", options, backend=backend)
            entry = add_engine(
                bundle, built.path, built.entry(engine_name(slug, built)), built_from=manifest.files
            )
        added.append((entry, state_of(built)))
    return added
