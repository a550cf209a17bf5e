"""The whole comparison of an older bundle with a newer one, and its checks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.parity.against.allowed import AllowedChanges
from export.parity.against.answers import Answers, answers_of
from export.parity.against.changes import changed_pictures, changes_by_generator, changes_of
from export.parity.against.report import AgainstReport, PairReport
from export.parity.against.sides import Closed, Side, backends_to_compare, differences, opened_pair
from export.parity.checks import FAILED, PASSED, RUNS, SKIPPED, Check, required, unreadable_check
from export.parity.outcome import environment
from export.parity.pictures.data_set import Picture, golden_pictures
from export.parity.pictures.reading import Reading, Sample
from export.parity.pictures.sampling import pictures_to_read
from export.parity.settings import require_rate
from export.parity.statistics.binomial import images_needed
from runtime.bundle.golden import read_golden
from runtime.bundle.opening import open_bundle
from runtime.errors import DataError, MissingDependencyError
from runtime.names import printable_name


@dataclass(frozen=True)
class AgainstOptions:
    """What a comparison of two bundles is asked for.

    Attributes:
        backends: by name, each of which both bundles must run; empty takes each that runs here.
        allowed: how many verdicts may change, of each backend.
        max_flip_bound: largest 95 % upper bound of the rate of changed verdicts; None does not gate it.
        reading: which files of a folder are taken and accepted.
        require_all: whether a backend that cannot run here keeps the report from being a pass.
        command: the command line, for whoever wants to see the same again.
    """

    backends: tuple[str, ...] = ()
    allowed: AllowedChanges = field(default_factory=AllowedChanges)
    max_flip_bound: float | None = None
    reading: Reading = field(default_factory=Reading)
    require_all: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_rate(self.max_flip_bound)


@dataclass(frozen=True)
class _Shown:
    """What both bundles are shown."""

    pictures: list[Picture]
    mosaics: NDArray[np.uint8] | None
    sample: Sample | None


def compare_bundles(
    new: Path, old: Path, data: Path | None, *, options: AgainstOptions | None = None
) -> AgainstReport:
    """Compares what two bundles say about the same pictures, from the files' bytes.

    Each is opened as the runtime opens it, with its self-test, and judges by its own preprocessing,
    temperature and threshold. Another model may lie behind either, so only verdicts are gated.

    Args:
        new: folder of the bundle that is to be used.
        old: folder of the bundle that was used.
        data: folder of pictures; None takes the golden mosaics of ``new``.
        options: None takes the defaults.

    Raises:
        MissingDependencyError: something asked for by name cannot run here, or nothing could be compared.
        ManifestError, DataError, UsageError: bad input.
    """
    options = options or AgainstOptions()
    options.reading.require_data(has_data=data is not None)
    started = time.perf_counter()
    with ExitStack() as stack:
        sides = []
        for path in (old, new):
            opened = stack.enter_context(open_bundle(path))
            opened.join()
            sides.append(Side(path, opened.manifest))
        before, after = sides
        shown = _shown(after, data, options.reading)
    checks: list[Check] = []
    pairs: list[PairReport] = []
    unreadable: dict[str, str] = {}
    for backend in backends_to_compare(after.manifest, options.backends):
        with opened_pair(
            before, after, backend, is_asked=bool(options.backends), limits=options.reading.limits
        ) as pair:
            if isinstance(pair, Closed):
                check = Check(backend, RUNS, SKIPPED if pair.is_missing else FAILED, pair.reason)
                checks.append(required(check) if options.require_all else check)
                continue
            found = answers_of(pair, f"parity, {backend}", shown.pictures, shown.mosaics)
            unreadable.update(found.unreadable)
            if not found.pictures:
                name, reason = found.unreadable[0]
                raise DataError(
                    f"found no picture that could be read among {len(shown.pictures)}, expected at least "
                    f"one, first {printable_name(name)}: {reason}"
                )
            pairs.append(_pair_report(backend, pair.title, found))
        checks += _checks(pairs[-1], found, options)
    if not pairs and not any(check.status == FAILED for check in checks):
        reasons = "; ".join(f"{check.hop}: {check.text}" for check in checks)
        raise MissingDependencyError(f"parity: nothing could be compared here ({reasons})")
    if data is not None:
        share = options.reading.max_unreadable
        checks.append(unreadable_check(tuple(unreadable.items()), len(shown.pictures), share))
    return AgainstReport(
        old=before,
        new=after,
        differences=differences(before.manifest, after.manifest),
        pairs=tuple(pairs),
        checks=tuple(checks),
        allowed=options.allowed,
        unreadable=tuple(unreadable.items()),
        reading=options.reading,
        sample=shown.sample,
        golden=shown.mosaics,
        environment=environment(),
        command=options.command,
        seconds=time.perf_counter() - started,
    )


def _shown(new: Side, data: Path | None, reading: Reading) -> _Shown:
    if data is not None:
        pictures, sample = pictures_to_read(data, reading)
        return _Shown(pictures, None, sample)
    manifest = new.manifest
    mosaics = read_golden(new.path / manifest.golden_file, manifest.embed_dim).images
    return _Shown(golden_pictures(len(mosaics)), mosaics, None)


def _pair_report(backend: str, title: str, found: Answers) -> PairReport:
    return PairReport(
        key=backend,
        title=title,
        pictures=tuple(found.pictures),
        old=found.old,
        new=found.new,
        changes=changes_of(found.pictures, found.old, found.new),
        generators=changes_by_generator(found.pictures, found.old, found.new),
        changed=tuple(changed_pictures(found.pictures, found.old, found.new)),
    )


def _checks(pair: PairReport, found: Answers, options: AgainstOptions) -> Sequence[Check]:
    changes, key = pair.changes, pair.key
    is_good = options.allowed.allows(changes.changed, changes.count)
    text = f"{changes.changed} of {changes.count:,} ({changes.split()}), allowed {options.allowed}"
    checks = [Check(key, "changed verdicts", PASSED if is_good else FAILED, text)]
    text = f"{len(found.silent)} of {len(found.pictures):,} have none"
    if found.silent:
        name, reason = found.silent[0]
        text += f", first {printable_name(name)}: {reason}"
    checks.append(Check(key, "every picture has a verdict", FAILED if found.silent else PASSED, text))
    bound = options.max_flip_bound
    if bound is not None:
        is_good = changes.bound <= bound
        text = f"at 95 % at most {changes.bound:.3g} of the verdicts change, allowed {bound:g}"
        if not is_good:
            text += f"; needs {images_needed(bound, changes.changed):,} pictures with as many changes"
        checks.append(Check(key, "flip bound", PASSED if is_good else FAILED, text))
    return checks
