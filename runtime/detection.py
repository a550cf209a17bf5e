"""The verdict on one item, and its one JSON form."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from runtime.decision import Verdict
from runtime.errors import DgsNetError
from runtime.names import is_utf8, name_bytes, utf8_name

SCHEMA_VERSION = 1

_PLAIN_KEYS = (
    "label", "probability", "logit", "threshold", "margin", "uncertain", "backend", "engine", "views",
)  # fmt: skip


@dataclass(frozen=True)
class ItemError:
    """Why an item has no verdict: the stable ``code`` of the error class, and its one-line message."""

    code: str
    message: str


@dataclass(frozen=True)
class Timing:
    """Milliseconds spent on one item; ``infer_ms`` is its share of its batch."""

    decode_ms: float
    select_ms: float
    infer_ms: float


@dataclass(frozen=True)
class Detection:
    """What the detector says about one item. Either ``error`` or all fields after ``path`` are set.

    Attributes:
        path: the name that was given, None for bytes, arrays and open files.
        label: "real" or "generated".
        probability: that the picture is AI-generated, in 0..1.
        logit: raw output of the graph.
        threshold: probability from which on the label is "generated".
        margin: distance of the logit from the boundary, in logits; negative means real.
        uncertain: whether the probability lies inside the band that a person should look at.
        backend: what ran, such as "onnxruntime:cpu".
        engine: stem of the engine's file.
        views: how many mosaics of the picture were averaged.
        ms: time spent.
        error: why there is no verdict.
    """

    path: str | None = None
    label: str | None = None
    probability: float | None = None
    logit: float | None = None
    threshold: float | None = None
    margin: float | None = None
    uncertain: bool | None = None
    backend: str | None = None
    engine: str | None = None
    views: int | None = None
    ms: Timing | None = None
    error: ItemError | None = None

    @classmethod
    def failed(cls, path: str | None, err: DgsNetError) -> Detection:
        """Returns the detection of an item that could not be judged."""
        return cls(path=path, error=ItemError(err.code, str(err)))

    @classmethod
    def judged(
        cls,
        path: str | None,
        verdict: Verdict,
        *,
        logit: float,
        threshold: float,
        backend: str,
        engine: str,
        views: int,
        ms: Timing,
    ) -> Detection:
        """Returns the detection of an item with a verdict."""
        return cls(
            path=path,
            label=verdict.label,
            probability=verdict.probability,
            logit=logit,
            threshold=threshold,
            margin=verdict.margin,
            uncertain=verdict.uncertain,
            backend=backend,
            engine=engine,
            views=views,
            ms=ms,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the object that ``predict --json`` prints: always the same keys, null where unknown.

        A path that is not UTF-8 carries U+FFFD there, and beside it ``path_base64``, its exact bytes.
        """
        result: dict[str, Any] = {"schema": SCHEMA_VERSION, "path": None}
        if self.path is not None:
            result["path"] = utf8_name(self.path)
            if not is_utf8(self.path):
                result["path_base64"] = base64.b64encode(name_bytes(self.path)).decode()
        for name in _PLAIN_KEYS:
            result[name] = getattr(self, name)
        ms, error = self.ms, self.error
        result["ms"] = ms and {"decode": ms.decode_ms, "select": ms.select_ms, "infer": ms.infer_ms}
        result["error"] = error and {"code": error.code, "message": error.message}
        return result
