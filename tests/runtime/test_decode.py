"""Every kind of picture that people hand in, good and bad."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from runtime.decode import decode_image
from runtime.errors import ImageError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.fixture
def small(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[:48, 200:264])


def test_decode_image__gives_equal_pixels_from_every_source(tmp_path: Path, small: np.ndarray) -> None:
    image = Image.fromarray(small)
    path = tmp_path / "picture.png"
    image.save(path)
    content = path.read_bytes()
    with open(path, "rb") as stream, Image.open(path) as lazy:
        sources = [
            path,
            str(path),
            content,
            bytearray(content),
            memoryview(content),
            stream,
            image,
            lazy,
            small,
        ]
        for source in sources:
            pixels = decode_image(source)
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous
            assert np.array_equal(pixels, small), type(source)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000", "GIF", "JPEG", "AVIF"])
def test_decode_image__reads_every_format(kind: str, small: np.ndarray) -> None:
    feature = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind)
    if feature is not None and not features.check(feature):
        pytest.skip(f"this Pillow was built without {kind}")
    lossless = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}
    pixels = decode_image(encoded(Image.fromarray(small), kind, **lossless.get(kind, {})))
    assert pixels.shape == small.shape
    if kind not in ("GIF", "JPEG", "AVIF"):
        assert np.array_equal(pixels, small)


def test_decode_image__goes_by_content_not_by_suffix(tmp_path: Path, small: np.ndarray) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(Image.fromarray(small), "PNG"))
    assert np.array_equal(decode_image(path), small)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_decode_image__scales_16_bit_grey_down(kind: str) -> None:
    samples = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    pixels = decode_image(encoded(Image.fromarray(samples), kind))
    assert np.array_equal(pixels, np.repeat((samples >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("value", [np.int32(7), np.float32(0.5)], ids=["I", "F"])
def test_decode_image__refuses_samples_of_unknown_range(value: np.generic) -> None:
    with pytest.raises(ImageError, match="32-bit samples of unknown range"):
        decode_image(encoded(Image.fromarray(np.full((40, 40), value)), "TIFF"))


def test_decode_image__turns_greyscale_and_bits_into_rgb(small: np.ndarray) -> None:
    grey = Image.fromarray(small).convert("L")
    for image in (grey, grey.convert("1")):
        pixels = decode_image(encoded(image, "PNG"))
        assert np.array_equal(pixels, np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2))


def test_decode_image__resolves_palettes(small: np.ndarray) -> None:
    image = Image.fromarray(small).quantize(32)
    assert np.array_equal(decode_image(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_decode_image__converts_cmyk() -> None:
    red = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    pixels = decode_image(encoded(red, "TIFF"))
    assert pixels[20, 20].tolist() == [255, 0, 0]
    assert np.abs(decode_image(encoded(red, "JPEG"))[20, 20].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_decode_image__flattens_transparency_on_white(mode: str) -> None:
    layered = np.zeros((40, 40, 4), dtype=np.uint8)
    layered[:, :20, 3] = 255
    if mode == "P":
        image = Image.fromarray((layered[..., 3] == 0).astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 9, 9, 9])
        content = encoded(image, "PNG", transparency=1)
    else:
        content = encoded(Image.fromarray(layered).convert(mode), "PNG")
    pixels = decode_image(content)
    assert pixels[5, 5].tolist() == [0, 0, 0]
    assert pixels[5, 35].tolist() == [255, 255, 255]


def test_decode_image__mixes_half_transparency_with_white() -> None:
    half = Image.new("RGBA", (40, 40), (0, 100, 200, 128))
    pixel = decode_image(encoded(half, "PNG"))[0, 0].astype(int)
    assert np.abs(pixel - [127, 177, 227]).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_decode_image__takes_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert decode_image(content)[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image__applies_exif_orientation(kind: str, orientation: int) -> None:
    corners = {(0, 0): 0, (0, -1): 80, (-1, 0): 160, (-1, -1): 240}
    upright = np.zeros((64, 96, 3), dtype=np.uint8)
    for (y, x), value in corners.items():
        upright[slice(0, 32) if y == 0 else slice(32, 64), slice(0, 48) if x == 0 else slice(48, 96)] = value
    # Where row 0 and column 0 of the stored picture belong, by the table of the EXIF standard.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright[:, ::-1].swapaxes(0, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: upright[::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes())
    pixels = decode_image(content)
    assert pixels.shape == upright.shape
    for (y, x), value in corners.items():
        assert abs(int(pixels[y, x, 0]) - value) < 12, (y, x)


def test_decode_image__ignores_a_broken_exif_block(small: np.ndarray) -> None:
    content = encoded(Image.fromarray(small), "PNG", exif=b"Exif\0\0no such thing")
    assert np.array_equal(decode_image(content), small)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_decode_image__refuses_truncated_files(kind: str, share: float, picture: np.ndarray) -> None:
    content = encoded(Image.fromarray(picture), kind)
    with pytest.raises(ImageError):
        decode_image(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"P", "not a picture"),
        (b"this is a text that somebody called a picture", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 50, "damaged PNG header"),
        (b"GIF89a", "truncated or damaged GIF header"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avif" + b"\0" * 40, "AVIF"),
    ],
    ids=["empty", "one byte", "text", "postscript", "png magic", "gif magic", "avif magic"],
)
def test_decode_image__refuses_what_is_no_picture(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(path)
    assert "\n" not in str(caught.value)
    assert "x.jpg" in str(caught.value)


def test_decode_image__refuses_a_bomb_by_its_header() -> None:
    with pytest.raises(ImageError, match="found 60000 x 60000 pixels, expected at most 200000000"):
        decode_image(png_header(60000, 60000))


def test_decode_image__has_a_limit_of_its_own_and_leaves_pillows_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    content = encoded(Image.new("L", (100, 100)), "PNG")
    assert decode_image(content, max_pixels=10_000).shape == (100, 100, 3)
    with pytest.raises(ImageError, match="expected at most 9999"):
        decode_image(content, max_pixels=9_999)
    with pytest.raises(ImageError, match="expected at most 9"):
        decode_image(np.zeros((10, 10), np.uint8), max_pixels=9)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_decode_image__neither_warns_nor_stops_at_pillows_limit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 15 000 pixels against 10 000 are what 134 million are against Pillow's own: a warning, not an error.
    content = encoded(Image.new("L", (150, 100)), kind, **({"disposal": 2} if kind == "GIF" else {}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(content).shape == (100, 150, 3)


def test_decode_image__goes_beyond_pillows_error_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (150, 100)), "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    assert decode_image(content).shape == (100, 150, 3)


def test_decode_image__names_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found a folder"):
        decode_image(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        decode_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        decode_image("a\0b.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        decode_image("\ud800.png")


def test_decode_image__does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            decode_image(path)
        except ImageError as err:
            caught.append(err)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert "pipe" in str(caught[0])


def test_decode_image__reads_names_that_are_not_utf8(tmp_path: Path, small: np.ndarray) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9\n.png"
    with open(name, "wb") as stream:
        stream.write(encoded(Image.fromarray(small), "PNG"))
    assert np.array_equal(decode_image(os.fsdecode(name)), small)
    os.truncate(name, 60)
    with pytest.raises(ImageError) as caught:
        decode_image(os.fsdecode(name))
    assert "caf\ufffd\\n.png" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((40, 40, 3)), "found float64, expected uint8"),
        (np.zeros((40, 40, 4), np.uint8), "found shape"),
        (np.zeros((3, 40, 40), np.uint8), "found shape"),
        (np.zeros((0, 40, 3), np.uint8), "found shape"),
        (np.zeros((4,), np.uint8), "found shape"),
    ],
    ids=["dtype", "alpha", "planes first", "no rows", "one axis"],
)
def test_decode_image__checks_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(array)


def test_decode_image__refuses_other_types_and_text_files() -> None:
    with pytest.raises(ImageError, match="found int"):
        decode_image(3)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="open it with 'rb'"):
        decode_image(io.StringIO("text"))  # type: ignore[arg-type]
