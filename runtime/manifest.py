"""manifest.json: reading, checking and writing the description of a bundle.

Everything in it is treated as hostile until checked. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from runtime.decision import Decision
from runtime.errors import ManifestError, SpecError
from runtime.spec import CLASSES, EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE, Preprocessing

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
MODEL_FP16_NAME = "model_fp16.onnx"
GOLDEN_NAME = "golden.npz"
ENGINES_FOLDER = "engines"
PARITY_FOLDER = "parity"  # reports about the bundle: the one folder that is not hashed
MAX_MANIFEST_BYTES = 1_000_000
MAX_BATCH = 4096

BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime")
PRECISIONS = ("fp16", "fp32")
VERIFIED = ("passed", "failed", "not-run")
# Levels beyond the one GPU that an engine was built on; an entry without the key has none.
HARDWARE_LEVELS = ("ampere-plus", "same-compute-capability")
REFERENCES = ("pytorch-fp32", "onnx-fp32")

_KEYS = {
    "schema", "graph", "preprocessing", "backbone", "classes", "decision", "tolerances", "golden", "files",
    "provenance", "engines", "digest",
}  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    sha256: str
    size: int


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
        build_seconds: how long the library took to build it, None when not recorded.
        build_peak_bytes: most host memory that the building process held, None when not recorded.

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
        said = {name: getattr(self, name) for name in _OPTIONAL_ENGINE_KEYS}
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


_OPTIONAL_ENGINE_KEYS = ("hardware_compatible", "version_compatible", "build_seconds", "build_peak_bytes")
_ENGINE_KEYS = set(EngineEntry.__dataclass_fields__) - set(_OPTIONAL_ENGINE_KEYS)


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. ``raw`` is the JSON object that it was read from, digest included."""

    embed_dim: int
    preprocessing: Preprocessing
    decision: Decision
    tolerances: dict[str, float]
    golden_file: str
    golden_reference: str
    files: dict[str, FileEntry]
    engines: tuple[EngineEntry, ...]
    digest: str
    raw: dict[str, Any]


def canonical_json(value: object) -> bytes:
    """Returns the one byte string that stands for a JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def manifest_digest(content: dict[str, Any]) -> str:
    """Returns the SHA-256 (hex) of a manifest's canonical JSON, ``digest`` left out."""
    return hashlib.sha256(canonical_json({k: v for k, v in content.items() if k != "digest"})).hexdigest()


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """Returns the bytes of manifest.json for ``content``, with a fresh digest as the last key.

    Raises:
        ManifestError: the content would not pass ``parse_manifest``, so nobody could open it.
    """
    body = {k: v for k, v in content.items() if k != "digest"}
    body["digest"] = manifest_digest(body)
    encoded = (json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    parse_manifest(encoded)
    return encoded


def parse_manifest(encoded: bytes) -> Manifest:
    """Returns the checked manifest held by the bytes of a manifest.json.

    Raises:
        ManifestError: not JSON, over 1 MB, of another schema, with a wrong digest, or with any field
            missing, unknown or out of range.
    """
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{MANIFEST_NAME}: found {len(encoded)} bytes, expected at most {MAX_MANIFEST_BYTES}"
        )
    try:
        content = json.loads(
            encoded.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as err:
        raise ManifestError(f"{MANIFEST_NAME}: not valid JSON ({err}); write the bundle again") from err
    if not isinstance(content, dict):
        raise ManifestError(f"{MANIFEST_NAME}: found {type(content).__name__}, expected an object")
    _check_schema(content)
    try:
        if content["digest"] != manifest_digest(content):
            raise ManifestError(
                f"{MANIFEST_NAME}: its content does not match its digest, so it was changed or damaged after "
                "it was written; get the bundle again or rebuild it"
            )
        return _checked(content)
    except SpecError as err:
        raise ManifestError(f"{MANIFEST_NAME}: {err}") from err
    # JSON can carry what has no canonical form (1e400 and lone surrogates: ValueError), and integers that no
    # float holds (ArithmeticError).
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as err:
        raise ManifestError(f"{MANIFEST_NAME}: missing or malformed field ({err!r:.200})") from err


def checked_name(name: object) -> str:
    """Returns a bundle-relative file name, or refuses it.

    Raises:
        ManifestError: empty, absolute, with backslashes, control characters, ``.`` or ``..`` parts.
    """
    if not isinstance(name, str) or not name or len(name) > 255:
        raise ManifestError(f"{MANIFEST_NAME}: found {name!r} as a file name, expected 1 to 255 characters")
    path = PurePosixPath(name)
    hostile = path.is_absolute() or "\\" in name or ":" in name or not name.isprintable()
    if hostile or ".." in path.parts or str(path) != name or name == ".":
        raise ManifestError(f"{MANIFEST_NAME}: file name {name!r} leaves the bundle or is not plain")
    return name


def _check_schema(content: dict[str, Any]) -> None:
    schema = content.get("schema")
    if type(schema) is int and schema > SCHEMA_VERSION:
        raise ManifestError(
            f"{MANIFEST_NAME}: schema {schema}, this dgsnet reads up to {SCHEMA_VERSION}; upgrade dgsnet"
        )
    if schema != SCHEMA_VERSION or type(schema) is not int:
        raise ManifestError(f"{MANIFEST_NAME}: found schema {schema!r}, expected {SCHEMA_VERSION}")
    if set(content) != _KEYS:
        odd = ", ".join(sorted(set(content) ^ _KEYS))
        raise ManifestError(f"{MANIFEST_NAME}: missing or unknown keys: {odd}")


def _checked(content: dict[str, Any]) -> Manifest:
    if content["classes"] != list(CLASSES):
        raise SpecError(f"classes: found {content['classes']!r}, expected {list(CLASSES)}")
    files = {checked_name(name): _file_entry(name, entry) for name, entry in content["files"].items()}
    engines = tuple(_engine_entry(entry, files) for entry in content["engines"])
    golden = content["golden"]
    if not {"file", "reference"} <= set(golden) <= {"file", "reference", "count"}:
        raise SpecError(f"golden: found keys {sorted(golden)}, expected file, reference and count")
    golden_file = checked_name(golden["file"])
    if len({(engine.file, engine.targets) for engine in engines}) != len(engines):
        raise SpecError("engines: one engine is listed twice for the same targets")
    backbone, provenance = content["backbone"], content["provenance"]
    if not isinstance(backbone, dict) or not isinstance(backbone.get("name"), str):
        raise SpecError("backbone: expected an object with a name")
    if not isinstance(provenance, dict):
        raise SpecError(f"provenance: found {type(provenance).__name__}, expected an object")
    if golden["reference"] not in REFERENCES:
        raise SpecError(f"golden.reference: found {golden['reference']!r}, expected one of {REFERENCES}")
    for required in (MODEL_NAME, golden_file):
        if required not in files:
            raise SpecError(f"files: {required} is not listed")
    return Manifest(
        embed_dim=_embed_dim(content["graph"]),
        preprocessing=Preprocessing.from_json(content["preprocessing"]),
        decision=Decision.from_json(content["decision"]),
        tolerances=_tolerances(content["tolerances"]),
        golden_file=golden_file,
        golden_reference=golden["reference"],
        files=files,
        engines=engines,
        digest=content["digest"],
        raw=content,
    )


def graph_json(embed_dim: int, opset: int) -> dict[str, Any]:
    """Returns the graph contract as the manifest states it."""
    return {
        "input": {"name": INPUT_NAME, "dtype": "uint8", "shape": ["batch", MOSAIC_SIDE, MOSAIC_SIDE, 3]},
        "outputs": [
            {"name": LOGIT_NAME, "dtype": "float32", "shape": ["batch"]},
            {"name": EMBEDDING_NAME, "dtype": "float32", "shape": ["batch", embed_dim]},
        ],
        "opset": opset,
    }


def _embed_dim(graph: dict[str, Any]) -> int:
    width, opset = graph["outputs"][1]["shape"][1], graph["opset"]
    if type(width) is not int or not 1 <= width <= 65536 or type(opset) is not int:
        raise SpecError(f"graph: found embedding width {width!r} at opset {opset!r}")
    if graph != graph_json(width, opset):
        raise SpecError("graph: input or outputs differ from the contract that this version runs")
    return width


def _file_entry(name: str, entry: dict[str, Any]) -> FileEntry:
    sha256, size = entry["sha256"], entry["size"]
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise SpecError(f"files.{name}.sha256: found {sha256!r}, expected 64 lower-case hex digits")
    if type(size) is not int or not 0 <= size < 2**44:
        raise SpecError(f"files.{name}.size: found {size!r}, expected a number of bytes")
    return FileEntry(sha256, size)


def _engine_entry(entry: dict[str, Any], files: dict[str, FileEntry]) -> EngineEntry:
    file = checked_name(entry["file"])
    if set(entry) - set(_OPTIONAL_ENGINE_KEYS) != _ENGINE_KEYS:
        odd = ", ".join(sorted((set(entry) - set(_OPTIONAL_ENGINE_KEYS)) ^ _ENGINE_KEYS))
        raise SpecError(f"engines.{file}: missing or unknown keys: {odd}")
    if file not in files:
        raise SpecError(f"engines: {file} is not listed in files")
    for key, allowed in (("backend", BACKENDS), ("precision", PRECISIONS), ("verified", VERIFIED)):
        if entry[key] not in allowed:
            raise SpecError(f"engines.{file}.{key}: found {entry[key]!r}, expected one of {allowed}")
    profiles = tuple(_profile(file, profile) for profile in entry["profiles"])
    built_on = [entry[key] for key in ("gpu", "driver") if entry[key] is not None]
    texts = [entry["version"], *entry["targets"], *built_on]
    # Printable: they are shown on terminals, which obey control characters.
    if any(not isinstance(text, str) or len(text) > 200 or not text.isprintable() for text in texts):
        raise SpecError(f"engines.{file}: version, targets, gpu and driver must be short printable texts")
    if not profiles or len(profiles) > 16 or not entry["targets"]:
        raise SpecError(f"engines.{file}: expected 1 to 16 profiles and at least one target")
    return EngineEntry(
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


def _optional_keys(file: str, entry: dict[str, Any]) -> dict[str, Any]:
    found = {name: entry[name] for name in _OPTIONAL_ENGINE_KEYS if name in entry}
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


def _tolerances(value: dict[str, Any]) -> dict[str, float]:
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 1e6:
            raise SpecError(f"tolerances.{name}: found {number!r}, expected a number of at least 0")
    return {name: float(number) for name, number in value.items()}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result
