"""Files that open and cannot be read: their error is one that another try may not meet."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.decode import decode_image
from runtime.decode.formats import identified
from runtime.decode.streams import open_regular
from runtime.errors import ImageError, ImageReadError


class FailingDisk(io.BytesIO):
    """A file whose bytes beyond a place cannot be had."""

    def __init__(self, content: bytes, good_bytes: int) -> None:
        super().__init__(content)
        self._good_bytes = good_bytes

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() + (size if size is not None and size >= 0 else 1 << 40) > self._good_bytes:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_decode_image__a_failing_disk_is_no_damaged_picture(
    kind: str, share: float, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    content = stream.getvalue()
    disk = FailingDisk(content, max(16, int(len(content) * share)) if share else 0)
    monkeypatch.setattr("runtime.decode.reading.open_regular", lambda path, name: disk)
    with pytest.raises(ImageReadError, match=r"^x\.img: cannot be read \(Input/output error\)") as caught:
        decode_image("x.img")
    assert caught.value.code == "image-read"


def test_identified__says_so_when_the_first_bytes_cannot_be_read() -> None:
    with pytest.raises(ImageReadError, match="Input/output error"):
        identified(FailingDisk(b"x" * 100, 0), "x")


def test_open_regular__tells_what_is_missing_from_what_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    with pytest.raises(ImageError, match="no such file") as caught:
        open_regular(str(path), "x")
    assert caught.value.code == "image"
    path.write_bytes(b"x")

    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may open anything
    with pytest.raises(ImageReadError, match="Permission denied"):
        open_regular(str(path), "x")
