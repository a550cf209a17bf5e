"""golden.npz is read without trusting a byte of it."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle.golden import read_golden
from runtime.errors import ManifestError

EMBED_DIM = 4


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def good_arrays(rows: int = 3) -> dict[str, np.ndarray]:
    return {
        "images": np.zeros((rows, 224, 224, 3), np.uint8),
        "logit": np.arange(rows, dtype=np.float32),
        "embedding": np.ones((rows, EMBED_DIM), np.float32),
    }


def test_read_golden__reads_all_or_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(npz(**good_arrays()))
    assert read_golden(path, EMBED_DIM).logit.tolist() == [0.0, 1.0, 2.0]
    first = read_golden(path, EMBED_DIM, limit=2)
    assert (first.images.shape, first.logit.tolist()) == ((2, 224, 224, 3), [0.0, 1.0])
    assert len(read_golden(path, EMBED_DIM, limit=9).images) == 3


def test_read_golden__counts_all_rows_though_it_reads_a_few(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(npz(**good_arrays()))
    assert len(read_golden(path, EMBED_DIM, limit=2, count=3).images) == 2
    with pytest.raises(
        ManifestError, match=r"found 3 images, 3 logits and 3 embeddings, .* 4 as the manifest"
    ):
        read_golden(path, EMBED_DIM, limit=2, count=4)
    path.write_bytes(npz(**good_arrays() | {"logit": np.zeros(2, np.float32)}))
    with pytest.raises(ManifestError, match="found 3 images, 2 logits"):
        read_golden(path, EMBED_DIM, limit=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 224, 224, 4), np.uint8)}, "images: found"),
        ({"images": np.zeros((3, 224, 224, 3), np.float32)}, "images: found <f4"),
        ({"images": np.asfortranarray(np.zeros((3, 224, 224, 3), np.uint8))}, "C order"),
        ({"images": np.zeros((0, 224, 224, 3), np.uint8)}, "found 0 rows"),
        ({"logit": np.zeros(4097, np.float32)}, "found 4097 rows"),
        ({"logit": np.zeros(3, np.float64)}, "logit: found <f8"),
        ({"logit": np.zeros(2, np.float32)}, "3 images, 2 logits"),
        ({"logit": np.array([0, 1, np.nan], np.float32)}, "NaN"),
        ({"embedding": np.zeros((3, 5), np.float32)}, "embedding: found"),
        ({"logit": np.array([{}, {}, {}], dtype=object)}, "logit: found .O"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_read_golden__refuses_other_arrays(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(npz(**{**good_arrays(), **changes}))
    with pytest.raises(ManifestError, match=message):
        read_golden(path, EMBED_DIM)


def member(shape: str, body: bytes, dtype: str = "|u1") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize(
    ("shape", "body", "message"),
    [
        ("(1000000000, 224, 224, 3)", b"", "found 1000000000 rows"),
        ("(3, 224, 224, 3)", b"\0" * 50_000_000, "found 50000"),
        ("(3, 224, 224, 3)", b"\0" * 10, "ends after 10 of"),
        ("(-3, 224, 224, 3)", b"", "rows|shape"),
        ("__import__('os')", b"", "does not parse"),
        ("(3, 224, 224, 3)" + " " * 30_000, b"", "npy header of 300"),
    ],
    ids=["huge shape", "bomb", "short", "negative", "code", "long header"],
)
def test_read_golden__does_not_unpack_hostile_members(
    tmp_path: Path, shape: str, body: bytes, message: str
) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(npz(**{k: v for k, v in good_arrays().items() if k != "images"}))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", member(shape, body))
    with pytest.raises(ManifestError, match=message):
        read_golden(path, EMBED_DIM)


def test_read_golden__refuses_methods_that_cannot_be_bounded(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(npz(**{k: v for k, v in good_arrays().items() if k != "images"}))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", member("(3, 224, 224, 3)", b"\0" * (3 * 224 * 224 * 3)))
    with pytest.raises(ManifestError, match="zip method 14"):
        read_golden(path, EMBED_DIM)


def test_read_golden__survives_any_flipped_byte(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    original = npz(**good_arrays(1))
    for index in range(0, len(original), max(1, len(original) // 120)):
        changed = bytearray(original)
        changed[index] ^= 0x55
        path.write_bytes(changed)
        with contextlib.suppress(ManifestError):
            read_golden(path, EMBED_DIM)
