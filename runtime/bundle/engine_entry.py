"""One engine of a bundle, as a line of its manifest. Hostile until checked. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.errors import SpecError

MAX_BATCH = 4096

BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime")
PRECISIONS = ("fp16", "fp32")
VERIFIED = ("passed", "failed", "not-run")
# Levels beyond the one GPU that an engine was built on; an entry without the key has none.
HARDWARE_LEVELS = ("ampere-plus", "same-compute-capability")


@dataclass(frozen=True)
class EngineEntry:
    """One way to run the bundle's model.

    Attributes:
        file: name inside the bundle; for onnxruntime the ONNX model itself.
        backend: one of ``BACKENDS``.
        precision: "fp16" or "fp32".
        profiles: (min, opt, max) batch sizes, one per optimisation profile, in the engine's own order: the
            range that was asked for first, then, where it was built, (1, 1, 1).
        targets: where it runs: "cpu", "cuda" or "sm_<NN>".
        version: version of the backend that built it (four parts for TensorRT).
        gpu: name of the GPU it was built on, None when built without one.
        driver: driver version it was built with, None when built without one.
        verified: "passed", "failed" or "not-run".
        hardware_compatible: one of ``HARDWARE_LEVELS`` as read back from the engine, None for none.
        version_compatible: whether later versions of TensorRT run it; it then holds code of its own.
        build_seconds: how long the library took to build it; of older manifests, None in newer ones, which
            are the same for the same build.
        build_peak_bytes: most host memory that the building process held; likewise.

    The last four are keys of the manifest only where they say something; ``version_compatible`` only if true.
    """

    file: str
    backend: str
    precision: str
    profiles: tuple[tuple[int, int, int], ...]
    targets: tuple[str, ...]
    version: str
    gpu: str | None
    driver: str | None
    verified: str
    hardware_compatible: str | None = None
    version_compatible: bool = False
    build_seconds: float | None = None
    build_peak_bytes: int | None = None

    @property
    def max_batch(self) -> int:
        """The largest batch that any profile holds."""
        return max(profile[2] for profile in self.profiles)

    def to_json(self) -> dict[str, Any]:
        """Returns the form that the manifest stores."""
        said = {name: getattr(self, name) for name in _OPTIONAL_KEYS}
        return {
            "file": self.file,
            "backend": self.backend,
            "precision": self.precision,
            "profiles": [list(profile) for profile in self.profiles],
            "targets": list(self.targets),
            "version": self.version,
            "gpu": self.gpu,
            "driver": self.driver,
            "verified": self.verified,
        } | {name: value for name, value in said.items() if value not in (None, False)}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> EngineEntry:
        """Reads what ``to_json`` wrote; that ``file`` is a plain name is for the caller to check.

        Raises:
            SpecError: a key is missing or unknown, or a value is out of range.
            LookupError, TypeError: ``entry`` or a value is of another type altogether.
        """
        file = entry["file"]
        if set(entry) - set(_OPTIONAL_KEYS) != _KEYS:
            odd = ", ".join(sorted((set(entry) - set(_OPTIONAL_KEYS)) ^ _KEYS))
            raise SpecError(f"engines.{file}: missing or unknown keys: {odd}")
        for key, allowed in (("backend", BACKENDS), ("precision", PRECISIONS), ("verified", VERIFIED)):
            if entry[key] not in allowed:
                raise SpecError(f"engines.{file}.{key}: found {entry[key]!r}, expected one of {allowed}")
        for key in ("profiles", "targets"):
            if not isinstance(entry[key], list):
                raise SpecError(f"engines.{file}.{key}: found {entry[key]!r:.80}, expected a list")
        profiles = tuple(_profile(file, profile) for profile in entry["profiles"])
        built_on = [entry[key] for key in ("gpu", "driver") if entry[key] is not None]
        texts = [entry["version"], *entry["targets"], *built_on]
        # Printable: they are shown on terminals, which obey control characters.
        if any(not isinstance(text, str) or len(text) > 200 or not text.isprintable() for text in texts):
            raise SpecError(f"engines.{file}: version, targets, gpu and driver must be short printable texts")
        if not profiles or len(profiles) > 16 or not entry["targets"]:
            raise SpecError(f"engines.{file}: expected 1 to 16 profiles and at least one target")
        return cls(
            file=file,
            backend=entry["backend"],
            precision=entry["precision"],
            profiles=profiles,
            targets=tuple(entry["targets"]),
            version=entry["version"],
            gpu=entry["gpu"],
            driver=entry["driver"],
            verified=entry["verified"],
            **_optional_keys(file, entry),
        )


_OPTIONAL_KEYS = ("hardware_compatible", "version_compatible", "build_seconds", "build_peak_bytes")
_KEYS = set(EngineEntry.__dataclass_fields__) - set(_OPTIONAL_KEYS)


def _optional_keys(file: str, entry: dict[str, Any]) -> dict[str, Any]:
    found = {name: entry[name] for name in _OPTIONAL_KEYS if name in entry}
    for name, value in found.items():
        if name == "hardware_compatible":
            fits = isinstance(value, str) and value in HARDWARE_LEVELS
        elif name == "version_compatible":
            fits = value is True
        else:
            kinds = (int, float) if name == "build_seconds" else (int,)
            fits = type(value) in kinds and 0 <= value < 2**50
        if not fits:
            raise SpecError(f"engines.{file}.{name}: found {value!r:.80}, expected what build-engine writes")
    return found


def _profile(file: str, profile: object) -> tuple[int, int, int]:
    if (
        not isinstance(profile, list)
        or len(profile) != 3
        or any(type(n) is not int for n in profile)
        or not 1 <= profile[0] <= profile[1] <= profile[2] <= MAX_BATCH
    ):
        raise SpecError(
            f"engines.{file}.profiles: found {profile!r}, expected 1 <= min <= opt <= max <= {MAX_BATCH}"
        )
    return profile[0], profile[1], profile[2]
