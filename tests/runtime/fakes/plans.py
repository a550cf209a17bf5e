"""Engine files for the fake TensorRT: a true header of 64 bytes, then JSON instead of kernels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

EMBED_DIM = 4
_MAGIC = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}


def fake_plan(
    backend: str = "tensorrt",
    version: str = "10.3.0.26",
    profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),),
    **changes: Any,
) -> bytes:
    """Returns an engine; ``changes`` replace what its tensors are or what it needs."""
    parts = bytes(int(part) & 0xFF for part in version.split("."))
    header = _MAGIC[backend] + bytes(20) + parts + bytes(36)
    content = {
        "backend": backend,
        "profiles": profiles,
        "host_code": False,
        "scratch": 4096,
        "tensors": {
            "images": ["INPUT", "UINT8", [-1, 224, 224, 3]],
            "logit": ["OUTPUT", "FLOAT", [-1]],
            "embedding": ["OUTPUT", "FLOAT", [-1, EMBED_DIM]],
        },
    }
    return header + json.dumps(content | changes).encode()


def compute(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the graph of the tests' tiny bundle gives: logit [n] and embedding [n, 4], float32.

    Args:
        images: uint8 ``[n, 224, 224, 3]``.
    """
    # Exact sums of integers, rows first: twenty times as fast as a mean in float64.
    columns = images.reshape(len(images), 224, 672).sum(axis=1, dtype=np.uint32)
    means = columns.reshape(len(images), 224, 3).sum(axis=1) / (224 * 224 * 255)
    corner = images[:, :32, :32, :1].sum(axis=(1, 2), dtype=np.uint32) / (32 * 32 * 255)
    embedding = np.concatenate([means, corner], axis=1)
    logit = embedding @ np.array([9.0, -4.0, 2.0, 5.0]) - 6.0
    return logit.astype(np.float32), embedding.astype(np.float32)
