"""The overflow guard: whether any value of the FP16 graph leaves FP16's range, and how far the others are.

Two runs over the same mosaics: the FP32 graph, for the true size of every activation, and the emulation of
the FP16 graph, which tells what FP16 makes of it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.precision.blocks import block_of, blocks_of, number_list, part_of
from export.precision.emulation import ComputedTensor
from export.precision.headroom import Overflow, OverflowReport, PartHeadroom
from export.precision.policy import PrecisionPolicy
from export.precision.watching import Seen, WatchedSession, open_emulation, open_watched_fp32
from runtime.console import Progress
from runtime.errors import GateFailedError, SpecError

# Half-way between 65504 and the next step: from here on rounding to nearest gives infinity.
ROUNDS_TO_INFINITY = 65520.0

Source = tuple[str, int]


def overflow_report(
    fp32: Path,
    fp16: Path,
    images: NDArray[np.uint8],
    policy: PrecisionPolicy,
    *,
    batch: int = 4,
    threads: int | None = None,
) -> OverflowReport:
    """Runs calibration mosaics through the FP32 graph and through the emulation of its FP16 form.

    Args:
        fp32: the FP32 graph, such as a bundle's model.onnx.
        fp16: the FP16 graph made from it.
        images: mosaics, uint8 ``[N, 224, 224, 3]``.
        policy: what the FP16 graph was made with, so that the advice adds to it.
        batch: mosaics a run, which bounds the memory.
        threads: CPU threads inside one operator; None leaves it to ONNX Runtime.

    Raises:
        GateFailedError: the FP32 graph itself gives NaN or infinity.
        SpecError: a graph breaks the contract, or the two are not of one model.
        EngineLoadError: ONNX Runtime cannot load or run a graph.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    if not len(images):
        raise SpecError("overflow guard: found no mosaics, expected at least one")
    with open_watched_fp32(fp32, max_batch=batch, threads=threads) as session:
        _run_all(session, images, batch, "activations in FP32")
        full, broken = session.tensors, session.first_overflow
        true = {tensor.source: session.seen[tensor.name].largest for tensor in full}
    if broken is not None:
        raise GateFailedError(
            f"{fp32.name}: the FP32 graph itself gives infinity or NaN, first in node {broken.node}; check "
            "the checkpoint, no precision policy can repair it"
        )
    with open_emulation(fp16, max_batch=batch, threads=threads) as session:
        half, seen = session.tensors, session.seen
        foreign = [tensor.node for tensor in half if tensor.source not in true]
        if foreign:
            raise SpecError(
                f"{fp16.name}: its node {foreign[0]} is not in {fp32.name}; make it from that graph again"
            )
        _run_all(session, images, batch, "activations in FP16, emulated")
        first = session.first_overflow
    return OverflowReport(
        count=len(images),
        parts=_parts(full, half, true, seen),
        first=None if first is None else _overflow(first, full, true, seen[first.name], policy),
        kept_by_user=policy.kept_by_user(),
    )


def _run_all(session: WatchedSession, images: NDArray[np.uint8], batch: int, title: str) -> None:
    with Progress(title, len(images)) as progress:
        for start in range(0, len(images), batch):
            rows = images[start : start + batch]
            session.run(rows)
            progress.advance(len(rows))


def _parts(
    full: Sequence[ComputedTensor],
    half: Sequence[ComputedTensor],
    true: dict[Source, float],
    seen: dict[str, Seen],
) -> tuple[PartHeadroom, ...]:
    in_half = {tensor.source for tensor in half}
    grouped: dict[str, list[Source]] = {}
    for tensor in full:
        grouped.setdefault(part_of(tensor.node), []).append(tensor.source)
    rows = []
    for part, sources in grouped.items():
        held = [source for source in sources if source in in_half]
        worst = max(held or sources, key=true.__getitem__)
        own = [seen[tensor.name] for tensor in half if part_of(tensor.source[0]) == part]
        rows.append(
            PartHeadroom(
                part=part,
                largest=true[worst],
                node=worst[0],
                fp16_tensors=len(held),
                infinite=sum(one.infinite for one in own),
                nan=sum(one.nan for one in own),
            )
        )
    return tuple(rows)


def _overflow(
    first: ComputedTensor,
    full: Sequence[ComputedTensor],
    true: dict[Source, float],
    seen: Seen,
    policy: PrecisionPolicy,
) -> Overflow:
    # A value that FP16 cannot hold must be made and read in FP32, wherever in the graph it is.
    too_large = [t for t in full if true[t.source] >= ROUNDS_TO_INFINITY or t.source == first.source]
    nodes = {name for tensor in too_large for name in (tensor.node, *tensor.readers)}
    return Overflow(
        part=part_of(first.source[0]),
        node=first.node,
        infinite=seen.infinite,
        nan=seen.nan,
        true_largest=true[first.source],
        advice=_advice({name for name in nodes if not policy.keeps_fp32(name)}, policy),
    )


def _advice(nodes: set[str], policy: PrecisionPolicy) -> str:
    """Returns the options that keep these nodes FP32, in addition to what the policy keeps."""
    blocks = blocks_of(nodes)
    others = sorted(
        {f"{part_of(name)}/*" if "/" in name else name for name in nodes if block_of(name) is None}
    )
    words = []
    if blocks or policy.fp32_blocks:
        words.append(f"--fp32-blocks {number_list((*blocks, *policy.fp32_blocks)).replace(' ', '')}")
    words += [f"--fp32-layers '{pattern}'" for pattern in (*policy.fp32_layers, *others)]
    shared = posixpath.commonpath(nodes)
    if len(blocks) == 1 and not others and "/" in shared:
        narrowest = shared if nodes == {shared} else f"{shared}/*"
        kept = [f"--fp32-blocks {number_list(policy.fp32_blocks)}"] if policy.fp32_blocks else []
        narrow = [*kept, *(f"--fp32-layers '{p}'" for p in (*policy.fp32_layers, narrowest))]
        return f"{' '.join(words)} (or {' '.join(narrow)})"
    return " ".join(words)
