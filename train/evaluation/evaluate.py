"""Scores of a run on a test set: per generator, clean and degraded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.decision import Decision
from runtime.errors import DataError, UsageError
from runtime.names import printable_name
from train.checkpoint import load_checkpoint
from train.data.audit import Audit
from train.data.degrade import LONGEST_SIDES, Degradation
from train.data.layout import Sample
from train.device import require_device
from train.evaluation.generators import GeneratorScore, generator_score
from train.evaluation.scores import readable_samples, score_samples
from train.metrics import require_both_classes


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        decision: the run's temperature, and the threshold that the rows hold at.
        samples: the pictures that were scored, N of them.
        logits: of those pictures as they are, raw, float32 ``[N]``.
        rows: one for each generator, sorted by name.
        degraded: the rows once more for each degradation, by its name.
        unreadable: the pictures that could not be read and are in no row, each with the reason.
    """

    decision: Decision
    samples: list[Sample]
    logits: NDArray[np.float32]
    rows: list[GeneratorScore]
    degraded: dict[str, list[GeneratorScore]]
    unreadable: list[tuple[Sample, str]]

    @property
    def labels(self) -> NDArray[np.int64]:
        """0 real, 1 generated, int64 ``[N]``."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    @property
    def places(self) -> dict[str, NDArray[np.int64]]:
        """The indices of each generator's pictures, by its name, sorted."""
        return _places(self.samples)


def evaluate_run(
    run: Path,
    data: Path,
    *,
    sources: Path | None = None,
    device: str = "cpu",
    threshold: float | None = None,
    batch: int | None = None,
    max_corrupt: float | None = None,
    degradations: Sequence[Degradation] = (),
    gated: Sequence[str] = (),
) -> Evaluation:
    """Scores every picture of ``data`` once as it is and once under each degradation.

    Args:
        run: a run's folder.
        data: ``<generator>/{0_real,1_fake}/``.
        sources: JSON map from a picture's path (below the folder that holds the map) to an object whose
            ``source`` names what it was made from; intervals resample sources, and pictures inside them.
        device: "cpu" or a CUDA device.
        threshold: probability to use instead of the run's own; the temperature stays the run's.
        batch: pictures the model sees at once; None takes the run's own.
        max_corrupt: share of unreadable pictures that is allowed; None takes the run's ``data.max_corrupt``.
        degradations: applied to both classes alike.
        gated: generators that a gate names and that must be there.

    Raises:
        UsageError: the device is unknown, or a gated generator is not there.
        MissingDependencyError: the device is absent.
        SpecError: the threshold is not in (0, 1), or a logit is not finite.
        CheckpointError: RUN cannot be loaded.
        DataError: the data set or the map of sources is incomplete, a generator has one class only, or more
            pictures cannot be read than ``max_corrupt`` allows.
    """
    require_device(device)
    checkpoint = load_checkpoint(run)
    decision = checkpoint.decision
    if threshold is not None:
        decision = dataclasses.replace(decision, threshold=threshold)
    audit = readable_samples(data, checkpoint.config.data, title="test", max_corrupt=max_corrupt)
    samples = audit.samples
    # What can be refused is refused before an hour of scoring rather than after it.
    places = _places(samples)
    for name, chosen in places.items():
        require_both_classes(printable_name(name), [samples[k].label for k in chosen])
    if unknown := sorted(set(gated) - set(places)):
        raise UsageError(f"--gate: found {unknown}, expected some of {list(places)}")
    groups = _source_of_each(sources, samples) if sources else None
    _require_sizes(audit, degradations)

    logits = score_samples(checkpoint, samples, device, title="reading test patches", batch=batch)
    rows = _rows(samples, logits, decision, groups)
    degraded = {}
    for degradation in degradations:
        title = f"reading test patches, {degradation.name}"
        changed = score_samples(checkpoint, samples, device, title=title, batch=batch, degrade=degradation)
        degraded[degradation.name] = _rows(samples, changed, decision, None)
    return Evaluation(decision, samples, logits, rows, degraded, audit.unreadable)


def _rows(
    samples: list[Sample],
    logits: NDArray[np.float32],
    decision: Decision,
    groups: dict[str, str] | None,
) -> list[GeneratorScore]:
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    rows = []
    for name, chosen in _places(samples).items():
        sources = None if groups is None else [groups[samples[k].key] for k in chosen]
        rows.append(generator_score(name, labels[chosen], logits[chosen], decision, sources))
    return rows


def _require_sizes(audit: Audit, degradations: Sequence[Degradation]) -> None:
    for degradation in degradations:
        longest = LONGEST_SIDES.get(degradation.kind)
        for sample, facts in zip(audit.samples, audit.facts, strict=True):
            if longest is not None and max(facts.width, facts.height) > longest:
                raise DataError(
                    f"{sample.name}: found {facts.width} x {facts.height} pixels, {degradation.name} takes "
                    f"at most {longest} on a side; leave out this degradation or the picture"
                )


def _places(samples: list[Sample]) -> dict[str, NDArray[np.int64]]:
    names = np.array([sample.generator for sample in samples], dtype=object)
    return {name: np.flatnonzero(names == name) for name in sorted(set(names))}


def _source_of_each(path: Path, samples: list[Sample]) -> dict[str, str]:
    root = path.resolve().parent
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {sample.key: content[_path_below(root, sample)]["source"] for sample in samples}
    except (OSError, ValueError, TypeError) as err:
        raise DataError(f"{path}: cannot be read as a JSON map, picture -> {{source}} ({err})") from err
    except KeyError as err:
        raise DataError(f"{path}: the source of {err} is missing") from err


def _path_below(root: Path, sample: Sample) -> str:
    path = sample.path.resolve().relative_to(root).as_posix()
    if sample.span is None:
        return path
    return f"{path}/{sample.key.partition(f'{sample.path.name}/')[2]}"  # a member of a shard
