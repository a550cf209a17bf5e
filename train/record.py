"""RUN/checkpoint.json: what describes a run's weights. Torch is not needed to read or write it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from runtime.bundle.manifest import MANIFEST_NAME
from runtime.errors import CheckpointError
from runtime.files import write_atomically

SCHEMA_VERSION = 1
RECORD_NAME = "checkpoint.json"
DIGEST_KEY = "digest"


def write_record(run: Path, record: dict[str, Any]) -> None:
    """Writes RUN/checkpoint.json atomically, with a fresh digest as its last key."""
    body = {key: value for key, value in record.items() if key != DIGEST_KEY}
    body[DIGEST_KEY] = record_digest(body)
    write_atomically(run / RECORD_NAME, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())


def record_digest(record: dict[str, Any]) -> str:
    """Returns the SHA-256 (hex) of a record's canonical JSON, its own digest left out.

    Canonical is what ``runtime.bundle.manifest.canonical_json`` writes, but in ASCII: a setting may hold the
    name of a file that is not valid Unicode.
    """
    body = {key: value for key, value in record.items() if key != DIGEST_KEY}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(run: Path) -> dict[str, Any]:
    """Returns the content of RUN/checkpoint.json.

    Raises:
        CheckpointError: missing, not JSON, of another schema, or changed since it was written.
    """
    path = run / RECORD_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
        digest = record_digest(record) if schema == SCHEMA_VERSION else ""
    except (FileNotFoundError, NotADirectoryError) as err:
        raise CheckpointError(
            f"{run}: found {_kind(run)}, expected the folder of a trained run, with {RECORD_NAME} in it"
        ) from err
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as err:
        raise CheckpointError(
            f"{path}: not a run's checkpoint ({err}); train one with dgsnet-train fit"
        ) from err
    if schema != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: found schema {schema!r}, this version reads {SCHEMA_VERSION}; upgrade dgsnet"
        )
    if record.get(DIGEST_KEY) != digest:
        raise CheckpointError(
            f"{path}: changed or damaged since it was written (digest differs); restore it or train again"
        )
    return dict(record)


def _kind(path: Path) -> str:
    """Returns what is there instead of a run with a checkpoint, for a message."""
    if (path / MANIFEST_NAME).is_file():
        return "a bundle, which holds no checkpoint"
    if (path / "resume").is_dir():
        return "a run that has saved no checkpoint yet (train fit --resume goes on with it)"
    if path.is_dir():
        return "another folder"
    return f"a file ({path.suffix or 'without suffix'})" if path.exists() else "nothing there"
