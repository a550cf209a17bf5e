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

from runtime.bundle.engine_entry import EngineEntry
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
    golden_count: int | None = None  # older bundles do not state it


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
    if not isinstance(content["engines"], list):
        raise SpecError(f"engines: found {type(content['engines']).__name__}, expected a list")
    files = {checked_name(name): _file_entry(name, entry) for name, entry in content["files"].items()}
    engines = tuple(_engine_entry(entry, files) for entry in content["engines"])
    golden = content["golden"]
    if not {"file", "reference"} <= set(golden) <= {"file", "reference", "count"}:
        raise SpecError(f"golden: found keys {sorted(golden)}, expected file, reference and count")
    golden_file = checked_name(golden["file"])
    golden_count = golden.get("count")
    if golden_count is not None and (type(golden_count) is not int or golden_count < 1):
        raise SpecError(f"golden.count: found {golden_count!r:.80}, expected a number of images")
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
        golden_count=golden_count,
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
    if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
        raise SpecError(f"files.{name}: found {entry!r:.80}, expected sha256 and size")
    sha256, size = entry["sha256"], entry["size"]
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise SpecError(f"files.{name}.sha256: found {sha256!r}, expected 64 lower-case hex digits")
    if type(size) is not int or not 0 <= size < 2**44:
        raise SpecError(f"files.{name}.size: found {size!r}, expected a number of bytes")
    return FileEntry(sha256, size)


def _engine_entry(entry: dict[str, Any], files: dict[str, FileEntry]) -> EngineEntry:
    if checked_name(entry["file"]) not in files:
        raise SpecError(f"engines: {entry['file']} is not listed in files")
    return EngineEntry.from_json(entry)


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
