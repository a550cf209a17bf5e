"""The two bundles: what differs in their settings, and which of their engines can be compared here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.parity.forms.engines import backends_in
from runtime.bundle.manifest import Manifest
from runtime.decode import DecodeLimits
from runtime.detector import Detector
from runtime.errors import DgsNetError, ManifestError, MissingDependencyError, UsageError

_LONGEST = 24


@dataclass(frozen=True)
class Side:
    """One of the two bundles.

    Attributes:
        path: its folder, as it was given.
        manifest: of it, checked.
    """

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Difference:
    """One setting that is another one in the new bundle; both values as JSON text."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        # A permutation is 49 numbers: which they are is in the JSON report.
        if max(len(self.old), len(self.new)) > _LONGEST:
            return f"{self.name}: another one"
        return f"{self.name} {self.old} -> {self.new}"


@dataclass(frozen=True)
class Closed:
    """A pair of engines that cannot be compared here.

    Attributes:
        reason: why.
        is_missing: whether what lacks is this machine's or a bundle's; else an engine broke that should work.
    """

    reason: str
    is_missing: bool


@dataclass(frozen=True)
class Pair:
    """An engine of each bundle, opened as the runtime opens them.

    Attributes:
        old: of the old bundle.
        new: of the new one.
    """

    old: Detector
    new: Detector

    @property
    def title(self) -> str:
        """Both engines' names and precisions, once where they are the same."""
        before, after = _engine(self.old), _engine(self.new)
        return after if before == after else f"{after} against the old bundle's {before}"


def differences(old: Manifest, new: Manifest) -> tuple[Difference, ...]:
    """Returns what differs in decision, preprocessing, classes and backbone, each by its name."""
    found = []
    for part in ("decision", "preprocessing", "classes", "backbone"):
        before, after = _flat(part, old.raw[part]), _flat(part, new.raw[part])
        for name in dict.fromkeys([*before, *after]):
            one, other = before.get(name, "none"), after.get(name, "none")
            if one != other:
                found.append(Difference(name, one, other))
    return tuple(found)


def backends_to_compare(new: Manifest, asked: Sequence[str]) -> list[str]:
    """Returns the backends that are compared, each once: those asked for, else what the new bundle has."""
    return list(dict.fromkeys(asked)) or backends_in(new)


@contextmanager
def opened_pair(
    old: Side, new: Side, backend: str, *, is_asked: bool, limits: DecodeLimits
) -> Iterator[Pair | Closed]:
    """Opens the same backend of both bundles; closes them at the end.

    Where the old bundle cannot run that backend here and nobody asked for it by name, its own choice is
    taken: what its users get on this machine.

    Args:
        old: the old bundle.
        new: the new one.
        backend: of the new bundle, such as "onnxruntime:cpu".
        is_asked: whether it was asked for by name, so that both have to run it.
        limits: which files are accepted.

    Raises:
        MissingDependencyError: it was asked for and cannot run here.
        UsageError: it is unknown.
        ManifestError: a bundle is damaged.
    """
    with ExitStack() as stack:

        def opened(side: Side, name: str) -> Detector:
            try:
                return stack.enter_context(Detector.open(side.path, name, **vars(limits)))
            except DgsNetError as err:
                raise type(err)(f"{'old' if side is old else 'new'} bundle: {err}") from err

        pair: Pair | Closed
        try:
            after = opened(new, backend)
            try:
                before = opened(old, backend)
            except MissingDependencyError:
                if is_asked:
                    raise
                before = opened(old, "auto")
            pair = Pair(before, after)
        except (UsageError, ManifestError):
            raise
        except MissingDependencyError as err:
            if is_asked:
                raise
            pair = Closed(str(err), is_missing=True)
        except DgsNetError as err:
            pair = Closed(str(err), is_missing=False)
        yield pair


def _engine(detector: Detector) -> str:
    return f"{detector.backend.name} ({detector.backend_report.entry.precision})"


def _flat(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {key: text for k, v in value.items() for key, text in _flat(f"{name}.{k}", v).items()}
    return {name: json.dumps(value)}
