"""The chain: the same mosaics through every form, each compared with the one before and with the first.

Memory does not grow with the pictures but for their logits: mosaics and embeddings live for one batch, and
cosines are taken on the fly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.parity.forms.form import Form, Runnable, ancestors, failure_text, run_in_chunks
from export.parity.pictures.data_set import Picture
from export.parity.pictures.feeding import Feed, FileFeed
from export.parity.pictures.from_files import FilesForm
from export.parity.settings import GateLimits
from export.parity.statistics.embeddings import cosine_rows, length_rows
from export.parity.statistics.measures import Comparison, comparison
from runtime.console import Progress
from runtime.decision import Decision
from runtime.errors import DataError
from runtime.names import printable_name

COMPARED, FIRST, SKIPPED, FAILED = "compared", "first", "skipped", "failed"


@dataclass(frozen=True)
class Hop:
    """What became of one form.

    Attributes:
        key: stable name.
        title: for a person.
        precision: "fp32" or "fp16": which limit holds against the form before.
        coarsest: "fp16" if it or anything that it is made from computes in FP16: which limit holds against
            the first form.
        status: "compared", "first" (what the others are compared with), "skipped" or "failed" (it could not
            be computed, and should have been).
        reason: why it was skipped or failed.
        previous: against the form before; None unless compared.
        first: against the first form; None unless compared.
        seconds: spent in its own forward passes.
    """

    key: str
    title: str
    precision: str
    coarsest: str
    status: str
    reason: str
    previous: Comparison | None
    first: Comparison | None
    seconds: float


@dataclass(frozen=True)
class Waterfall:
    """The whole chain.

    Attributes:
        hops: in its order.
        pictures: those that were compared.
        logits: by key, float32 ``[N]`` each.
        seconds: from the first to the last picture, reading them included.
    """

    hops: tuple[Hop, ...]
    pictures: tuple[Picture, ...]
    logits: dict[str, NDArray[np.float32]]
    seconds: float


def run_waterfall(
    feed: Feed,
    forms: Sequence[Form],
    files: Sequence[FilesForm],
    *,
    decision: Decision,
    limits: GateLimits,
    batch: int,
) -> Waterfall:
    """Streams the pictures through all forms.

    Args:
        feed: the pictures.
        forms: the chain, parents before children; the first that can run is the reference of all.
        files: the runtime from file bytes, after their engines.
        decision: the rule by which a verdict counts as changed.
        limits: which flips are ties.
        batch: pictures at a time.

    Raises:
        DataError: not one picture could be read.
    """
    run = _Run(forms, files)
    pictures: list[Picture] = []
    started = time.perf_counter()
    with Progress("parity", feed.count) as progress:
        for part in feed.batches(batch):
            if part.pictures:
                run.take(part.pictures, part.mosaics, batch)
                pictures += part.pictures
            progress.advance(part.taken)
    seconds = time.perf_counter() - started
    if not pictures:
        reasons = feed.unreadable if isinstance(feed, FileFeed) else []
        first = f", first {printable_name(reasons[0][0])}: {reasons[0][1]}" if reasons else ""
        raise DataError(
            f"found no picture that could be read among {feed.count}, expected at least one{first}"
        )
    hops = [run.hop(form, pictures, decision, limits) for form in (*forms, *map(_as_form, files))]
    logits = {key: np.concatenate(parts) for key, parts in run.logits.items()}
    return Waterfall(tuple(hops), tuple(pictures), logits, seconds)


def _as_form(files: FilesForm) -> Form:
    # It computes from files, never from mosaics, so it has nothing to run here.
    return Form(files.key, files.title, files.parent, files.precision, None)


class _Run:
    """The state of one pass: logits by form, cosines by pair, what broke."""

    def __init__(self, forms: Sequence[Form], files: Sequence[FilesForm]) -> None:
        self.logits: dict[str, list[NDArray[np.float32]]] = {}
        self._forms = list(forms)
        self._files = list(files)
        self._chain = [*self._forms, *map(_as_form, files)]
        self._cosines: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
        self._lengths: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
        self._broken: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def take(self, pictures: list[Picture], mosaics: NDArray[np.uint8], batch: int) -> None:
        """Runs one batch through everything that still can."""
        embeddings: dict[str, NDArray[np.float32]] = {}
        for form in self._forms:
            runnable = form.runnable
            if runnable is None or form.key in self._broken:
                continue
            outputs = self._timed(form.key, runnable, mosaics, _chunk(form, batch))
            if outputs is None:
                continue
            for above in ancestors(self._forms, form.key):
                if above in embeddings:
                    cosines = cosine_rows(embeddings[above], outputs[1])
                    self._cosines.setdefault((above, form.key), []).append(cosines)
                    lengths = length_rows(embeddings[above], outputs[1])
                    self._lengths.setdefault((above, form.key), []).append(lengths)
            embeddings[form.key] = outputs[1]
        for files in self._files:
            started = time.perf_counter()
            self.logits.setdefault(files.key, []).append(files.run_files(pictures))
            self._spend(files.key, started)
            for picture, mosaic in zip(pictures, mosaics, strict=True):
                files.compare_mosaic(picture, mosaic)

    def hop(self, form: Form, pictures: list[Picture], decision: Decision, limits: GateLimits) -> Hop:
        """Returns what became of a form."""
        seconds = self._seconds.get(form.key, 0.0)
        coarsest = coarsest_precision(self._chain, form.key)
        common = (form.key, form.title, form.precision, coarsest)
        if form.key in self._broken:
            return Hop(*common, FAILED, self._broken[form.key], None, None, seconds)
        if form.key not in self.logits:
            status = SKIPPED if form.is_missing else FAILED
            return Hop(*common, status, form.reason, None, None, seconds)
        computed = [key for key in ancestors(self._chain, form.key) if key in self.logits]
        if not computed:
            return Hop(*common, FIRST, "", None, None, seconds)
        pair = [
            comparison(
                above,
                pictures,
                np.concatenate(self.logits[above]),
                np.concatenate(self.logits[form.key]),
                cosines=_joined(self._cosines, above, form.key),
                lengths=_joined(self._lengths, above, form.key),
                decision=decision,
                tie_below=limits.max_abs_logit(form.precision if k == 0 else coarsest),
            )
            for k, above in enumerate((computed[0], computed[-1]))
        ]
        return Hop(*common, COMPARED, "", pair[0], pair[1], seconds)

    def _timed(
        self, key: str, runnable: Runnable, mosaics: NDArray[np.uint8], size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        started = time.perf_counter()
        try:
            outputs = run_in_chunks(runnable, mosaics, size)
        except Exception as err:  # whatever an engine raises must not hide what the other forms say
            self._broken[key] = failure_text(err)
            self.logits.pop(key, None)
            return None
        self._spend(key, started)
        self.logits.setdefault(key, []).append(outputs[0])
        return outputs

    def _spend(self, key: str, started: float) -> None:
        self._seconds[key] = self._seconds.get(key, 0.0) + time.perf_counter() - started


def coarsest_precision(forms: Sequence[Form], key: str) -> str:
    """Returns "fp16" if a form, or any form that it is made from, computes in FP16; else "fp32"."""
    precisions = {form.key: form.precision for form in forms}
    chain = [key, *ancestors(forms, key)]
    return "fp16" if any(precisions.get(one) == "fp16" for one in chain) else "fp32"


def _joined(
    parts: dict[tuple[str, str], list[NDArray[np.float64]]], above: str, key: str
) -> NDArray[np.float64] | None:
    found = parts.get((above, key))
    return None if found is None else np.concatenate(found)


def _chunk(form: Form, batch: int) -> int:
    return batch if form.profile is None else min(batch, form.profile[2])
