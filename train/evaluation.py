"""Scores of a run on a test set, per generator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from runtime.errors import DataError
from train.checkpoint import load_checkpoint
from train.data.layout import find_samples
from train.device import require_device
from train.metrics import GeneratorScore, generator_score
from train.scores import score_samples


def evaluate_run(
    run: Path, data: Path, *, sources: Path | None, device: str, threshold: float | None = None
) -> tuple[list[GeneratorScore], float]:
    """Returns one row per generator folder of ``data``, sorted by name, and the threshold they hold at.

    Args:
        run: a run's folder.
        data: ``<generator>/{0_real,1_fake}/``.
        sources: JSON map from a picture's path (below the folder that holds the map) to an object whose
            ``source`` names what it was made from; intervals resample sources, and pictures inside them.
        device: "cpu" or a CUDA device.
        threshold: probability to use instead of the run's own; the temperature stays the run's.

    Raises:
        UsageError: the device is unknown.
        MissingDependencyError: the device is absent.
        SpecError: the threshold is not in (0, 1).
        CheckpointError: RUN cannot be loaded.
        DataError: the data set or the map of sources is incomplete.
    """
    require_device(device)
    checkpoint = load_checkpoint(run)
    decision = checkpoint.decision
    if threshold is not None:
        decision = dataclasses.replace(decision, threshold=threshold)
    samples = find_samples(data)
    groups = _source_of_each(sources, [sample.path for sample in samples]) if sources else None
    logits = score_samples(checkpoint, samples, device, title="reading test patches")
    labels = np.array([sample.label for sample in samples])
    names = np.array([sample.generator for sample in samples])
    rows = []
    for name in sorted(set(names.tolist())):
        chosen = np.flatnonzero(names == name)
        rows.append(
            generator_score(
                name,
                labels[chosen],
                logits[chosen],
                decision,
                None if groups is None else [groups[k] for k in chosen],
            )
        )
    return rows, decision.threshold


def mean_row(rows: list[GeneratorScore]) -> dict[str, float]:
    """Returns the unweighted mean over generators."""
    keys = ("accuracy", "ap", "real_accuracy", "fake_accuracy")
    return {key: float(np.mean([getattr(row, key) for row in rows])) for key in keys}


def _source_of_each(path: Path, pictures: list[Path]) -> list[str]:
    root = path.resolve().parent
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [content[picture.resolve().relative_to(root).as_posix()]["source"] for picture in pictures]
    except (OSError, ValueError, TypeError) as err:
        raise DataError(f"{path}: cannot be read as a JSON map, picture -> {{source}} ({err})") from err
    except KeyError as err:
        raise DataError(f"{path}: the source of {err} is missing") from err
