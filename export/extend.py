"""Adding an engine for this machine to an existing bundle: in place, atomically, without torch."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from export.bundle.add_engine import add_engine
from export.bundle.lock import bundle_lock
from export.bundle.recovery import recover
from export.engine.builder import build_engine, require_buildable
from export.engine.naming import slug_from_text
from export.engine.options import BuildOptions
from export.engines import StagedEngine, graph_name, staged_engine
from export.precision.policy import policy_of_bundle
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.golden import Golden, read_golden
from runtime.bundle.manifest import Manifest
from runtime.bundle.opening import open_bundle
from runtime.errors import EngineLoadError, ParityError, UsageError
from runtime.selftest.checks import manifest_tolerance
from runtime.selftest.laws import full_self_test

logger = logging.getLogger("dgsnet.export.engine")


def add_backends(
    bundle: Path,
    backends: tuple[str, ...],
    options: BuildOptions,
    *,
    name: str,
    allow_failed: bool = False,
) -> list[tuple[EngineEntry, str]]:
    """Builds one engine per backend from the bundle's own graphs, runs it if it can, and adds it.

    Args:
        bundle: the bundle's folder; every hash is checked first.
        backends: "tensorrt" or "tensorrt-rtx".
        options: precision, batch sizes and targets; its precision policy is replaced by the bundle's own.
        name: of the model in file names; "" takes the backbone's.
        allow_failed: whether an engine whose logits are off is added, marked as failed, instead of refused.

    Returns:
        The manifest's new entries, each with its state in words.

    Raises:
        ManifestError: the bundle is damaged.
        ParityError: the engine does not give the bundle's golden logits.
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
            golden = read_golden(opened.file(manifest.golden_file), manifest.embed_dim)
        slug = slug_from_text(name or str(manifest.raw["backbone"]["name"]))
        options = replace(options, policy=policy_of_bundle(manifest.raw["provenance"]))
        for backend in backends:
            built = build_engine(graph, folder / "new.engine", options, backend=backend)
            engine = staged_engine(built, slug)
            verified, found = _verified(engine, manifest, golden)
            if verified == "failed" and not allow_failed:
                raise ParityError(f"{backend}: not added, {found}; --allow-failed-parity adds it as failed")
            entry = replace(engine.entry, verified=verified)
            entry = add_engine(bundle, built.path, entry, built_from=manifest.files, figures=engine.figures)
            built.path.unlink()
            added.append((entry, engine.state(found)))
    return added


def _verified(engine: StagedEngine, manifest: Manifest, golden: Golden) -> tuple[str, str]:
    """Returns ("passed" | "failed" | "not-run", why): the engine against the bundle's golden logits."""
    reason = engine.reason_not_to_run()
    if reason:
        return "not-run", reason
    tolerance = manifest_tolerance(manifest, engine.entry.precision)
    try:
        with engine.open(manifest.embed_dim) as backend:
            checks = list(full_self_test(backend, golden, tolerance, engine.entry.profiles))
    except EngineLoadError as err:
        return "failed", str(err)
    broken = [check.line() for check in checks if not check.passed]
    if broken:
        return "failed", f"its logits are off: {broken[0]}"
    return "passed", f"{len(checks)} checks of the self-test passed"


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
