"""The gate of a bundle that is being built: its golden mosaics through every form, before it is published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle.build_figures import BUILD_NAME, write_build_figures
from export.bundle.writer import BundleWriter
from export.engines import StagedEngine
from export.parity.forms.form import Graphs
from export.parity.forms.stored import StoredOutputs
from export.parity.gate import GateOptions, golden_gate
from export.parity.junit import junit_xml
from export.parity.outcome import GateReport
from export.parity.page.document import html_page
from export.parity.waterfall import COMPARED
from export.precision.headroom import OverflowReport
from export.steps.graph import LARGE_PROFILE, References, SourceFacts
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.golden import Golden
from runtime.bundle.manifest import MODEL_FP16_NAME, MODEL_NAME, PARITY_FOLDER


@dataclass(frozen=True)
class Staged:
    """What the gate looks at.

    Attributes:
        facts: of the source.
        references: what the source gives on the golden mosaics.
        golden: mosaics uint8 ``[N, 224, 224, 3]``.
        embed_dim: width D.
        profile: (min, opt, max) batch size that was asked for.
    """

    facts: SourceFacts
    references: References
    golden: NDArray[np.uint8]
    embed_dim: int
    profile: tuple[int, int, int]


def run_gate(
    writer: BundleWriter, staged: Staged, engines: Sequence[StagedEngine], command: tuple[str, ...]
) -> GateReport:
    """Compares PyTorch, both graphs and every engine that runs here on the golden mosaics.

    Args:
        writer: holds the graphs and the engines.
        staged: what they were made from.
        engines: as ``add_engines`` gave them.
        command: for whoever reads the report.
    """
    count = staged.facts.compared(len(staged.golden))
    images = staged.golden[:count]
    profile = staged.profile
    if count < len(staged.golden):
        profile = LARGE_PROFILE
    logit, embedding = (part[:count] for part in staged.references.unmerged)
    merged = staged.references.merged
    checkpoint = None if merged is None else StoredOutputs(images, (logit, embedding), merged)
    graphs = Graphs(writer.path(MODEL_NAME), writer.path(MODEL_FP16_NAME), staged.embed_dim, profile)
    with ExitStack() as stack:
        forms = [engine.form(staged.embed_dim, profile, stack) for engine in engines]
        return golden_gate(
            checkpoint,
            Golden(images, logit, embedding),
            graphs,
            decision=staged.facts.decision,
            reference_name=staged.facts.reference_name,
            engines=forms,
            options=GateOptions(command=command),
        )


def write_reports(
    writer: BundleWriter,
    report: GateReport,
    overflow: OverflowReport,
    engines: Sequence[StagedEngine] = (),
) -> None:
    """Writes what is not hashed into the bundle: parity.json, report.html, junit.xml and build.json.

    Args:
        writer: of the bundle.
        report: of the gate.
        overflow: of the overflow guard.
        engines: those that were built, whose time and memory build.json keeps.
    """
    content: dict[str, Any] = report.to_json() | {"overflow_guard": overflow.to_json()}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    for name, data in (
        ("parity.json", text.encode()),
        ("report.html", html_page(report)),
        ("junit.xml", junit_xml(report)),
    ):
        writer.path(f"{PARITY_FOLDER}/{name}").write_bytes(data)
    figures = {engine.entry.file: engine.figures for engine in engines if engine.figures is not None}
    write_build_figures(writer.path(f"{PARITY_FOLDER}/{BUILD_NAME}").parent, figures)


def judged_entries(
    engines: Sequence[StagedEngine], report: GateReport, *, is_sound: bool
) -> list[tuple[EngineEntry, str]]:
    """Returns the manifest's lines with what the gate found: passed, failed, or not run here.

    Args:
        engines: as ``add_engines`` gave them.
        report: of the gate.
        is_sound: whether the gate and all other checks of the bundle passed.
    """
    hops = {hop.key: hop for hop in report.waterfall.hops}
    judged = []
    for engine in engines:
        hop = hops[engine.key]
        if not is_sound:
            # Whatever broke, nobody may run a part of such a bundle by accident.
            verified, found = "failed", f"the bundle failed at {report.blame or 'the overflow guard'}"
        elif hop.status == COMPARED:
            verified, found = "passed", "compared with the reference on the golden mosaics"
        else:
            verified, found = "not-run", hop.reason
        judged.append((replace(engine.entry, verified=verified), engine.state(found)))
    return judged
