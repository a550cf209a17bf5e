"""What is checked when a bundle is opened: three images, or every law of a GPU engine that is new here."""

from __future__ import annotations

import logging
import os

from runtime.backends.base import Backend
from runtime.backends.selection import BackendReport
from runtime.bundle.golden import read_golden
from runtime.bundle.opening import Bundle
from runtime.selftest.checks import manifest_tolerance, require
from runtime.selftest.laws import QUICK_ROWS, full_self_test, quick_self_test
from runtime.selftest.stamps import Stamp, is_on_gpu

logger = logging.getLogger("dgsnet.selftest")


def self_test_at_open(
    bundle: Bundle, backend: Backend, report: BackendReport, cache_dir: str | os.PathLike[str] | None
) -> None:
    """Runs the quick self-test; on a GPU the full one first, once per bundle, GPU, driver and library.

    Raises:
        SelfTestError: a check failed; the message names it.
        ManifestError: the golden file or the tolerances cannot be used.
        EngineLoadError: the engine failed.
    """
    manifest = bundle.manifest
    tolerance = manifest_tolerance(manifest, report.entry.precision)
    path = bundle.file(manifest.golden_file)
    if is_on_gpu(report):
        stamp = Stamp(manifest, report, cache_dir)
        if not stamp.exists():
            logger.info("first use of engine %s on this machine: running the full self-test", report.engine)
            golden = read_golden(path, manifest.embed_dim, count=manifest.golden_count)
            for check in full_self_test(backend, golden, tolerance, report.entry.profiles):
                require(check)
            if bundle.verification.is_on:  # only of bytes that are proved to be the manifest's
                bundle.join()
                stamp.keep()
            return
    golden = read_golden(path, manifest.embed_dim, QUICK_ROWS, count=manifest.golden_count)
    quick_self_test(backend, golden, tolerance)
