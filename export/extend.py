"""Adding an engine for this machine to an existing bundle: in place, atomically, without torch."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.bundle.add_engine import add_engine, recover
from export.bundle.lock import bundle_lock
from export.engine.builder import build_engine, require_buildable
from export.engine.naming import slug_from_text
from export.engine.options import BuildOptions
from export.engines import engine_name, graph_name, state_of
from runtime.bundle import open_bundle
from runtime.errors import UsageError
from runtime.manifest import EngineEntry

logger = logging.getLogger("dgsnet.export.engine")


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
        UsageError: a backend that needs no engine file, a bundle that cannot be written, or another process
            builds for the same bundle.
        EngineBuildError, GateFailedError, MissingDependencyError: as in ``build_engine``.
    """
    if "onnxruntime" in backends:
        raise UsageError("onnxruntime runs a bundle's model.onnx as it is; name tensorrt or tensorrt-rtx")
    for backend in backends:
        require_buildable(options, backend=backend)
    recover(bundle)
    added = []
    with _workshop(bundle) as folder:
        with open_bundle(bundle, verify="full") as opened:
            opened.join()
            manifest = opened.manifest
            graph = opened.file(graph_name(options))
        slug = slug_from_text(name or str(manifest.raw["backbone"]["name"]))
        for backend in backends:
            built = build_engine(graph, folder / "new.engine", options, backend=backend)
            entry = add_engine(
                bundle, built.path, built.entry(engine_name(slug, built)), built_from=manifest.files
            )
            built.path.unlink()
            added.append((entry, state_of(built)))
    return added


@contextmanager
def _workshop(bundle: Path) -> Iterator[Path]:
    """Gives a folder beside the bundle, on its disk, and locks out a second build for the same bundle.

    A killed build leaves its folder behind; the next one, which then holds the lock, removes it.
    """
    place = bundle.resolve()
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{bundle}: cannot be written; copy the bundle to a folder of yours")
    with bundle_lock(place.with_name(f"{place.name}.engines")):
        left = re.compile(rf"\.{re.escape(place.name)}\.engine-[0-9a-f]{{8}}")
        for path in sorted(place.parent.iterdir()):
            if left.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                logger.info("removed %s, left by an interrupted build", path.name)
                shutil.rmtree(path)
        folder = place.with_name(f".{place.name}.engine-{secrets.token_hex(4)}")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
