"""Which names a command line stands for."""

from __future__ import annotations

import io
import logging
import os
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.errors import UsageError
from runtime.names import printable_name, utf8_name
from runtime.pictures.scan import expand_paths, pictures_below, read_names


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in (
        "b.PNG",
        "a/z.jpg",
        "a/deep/y.webp",
        "a/notes.txt",
        "c.tif",
        "B.jpg",
        "a.gif",
        "d/readme.md",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "loop").symlink_to(root)
    (root / "link.png").symlink_to(root / "b.PNG")
    return root


def relative(paths: list[str], root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]


def test_expand_paths__walks_folders_depth_first_and_sorted(tree: Path) -> None:
    found = relative(list(expand_paths([str(tree)])), tree)
    assert found == ["B.jpg", "a/deep/y.webp", "a/z.jpg", "a.gif", "b.PNG", "c.tif", "link.png"]


def test_expand_paths__does_not_pass_over_a_phones_pictures(tree: Path) -> None:
    for name in ("IMG_1.HEIC", "IMG_2.heif", "IMG_3.mov"):
        (tree / "d" / name).write_bytes(b"")
    assert relative(list(expand_paths([str(tree / "d")])), tree) == ["d/IMG_1.HEIC", "d/IMG_2.heif"]


def test_expand_paths__can_stay_in_the_folder(tree: Path) -> None:
    found = relative(list(expand_paths([str(tree)], recursive=False)), tree)
    assert found == ["B.jpg", "a.gif", "b.PNG", "c.tif", "link.png"]


def test_expand_paths__takes_named_files_as_they_are(tree: Path) -> None:
    named = [str(tree / "a/notes.txt"), str(tree / "missing.png"), str(tree / "c.tif")]
    assert list(expand_paths(named)) == named


def test_expand_paths__reads_names_from_a_stream(tree: Path) -> None:
    stream = io.BytesIO(f"{tree / 'c.tif'}\n\n{tree / 'a'}\nlast".encode())
    found = list(expand_paths(["first", "-"], names=stream))
    assert found == ["first", str(tree / "c.tif"), str(tree / "a/deep/y.webp"), str(tree / "a/z.jpg"), "last"]


def test_read_names__splits_at_nul_and_keeps_any_bytes() -> None:
    names = [b"line\nbreak.png", b"caf\xe9.png", b"x" * 100_000]
    found = list(read_names(io.BytesIO(b"\0".join(names) + b"\0"), nul=True))
    assert [os.fsencode(name) for name in found] == names


@pytest.mark.parametrize("nul", [False, True])
def test_read_names__stops_at_a_name_without_an_end(nul: bool) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            assert self.given < 1 << 24, "read on and on"
            return b"x" * size

    with pytest.raises(UsageError, match=r"on standard input without a (NUL|line break)"):
        list(read_names(Endless(), nul=nul))


def test_expand_paths__says_when_a_folder_holds_no_pictures(
    tree: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dgsnet"), "propagate", True)
    assert list(expand_paths([str(tree / "d")])) == []
    assert "no pictures found" in caplog.text


def test_expand_paths__passes_on_a_folder_that_cannot_be_listed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: bytes) -> object:
        if os.path.basename(path) == b"a":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert str(tree / "a") in list(expand_paths([str(tree)]))


class Entry:
    def __init__(self, folder: bytes, name: bytes, *, is_folder: bool) -> None:
        self.name, self.path, self._is_folder = name, os.path.join(folder, name), is_folder

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        return self._is_folder

    def is_symlink(self) -> bool:
        return False

    def is_file(self) -> bool:
        return not self._is_folder


@pytest.fixture
def imagined(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[bytes], Iterable[tuple[bytes, bool]]]], None]:
    """Makes os.scandir tell of trees that are too large to write: (name, is folder) of each entry."""

    def imagine(listing: Callable[[bytes], Iterable[tuple[bytes, bool]]]) -> None:
        @contextmanager
        def scandir(folder: bytes) -> Iterator[Iterator[Entry]]:
            yield (Entry(folder, name, is_folder=is_folder) for name, is_folder in listing(folder))

        monkeypatch.setattr(os, "scandir", scandir)

    return imagine


def test_pictures_below__walks_deeper_than_python_recurses(imagined: Callable[..., None]) -> None:
    depth = 3000
    imagined(lambda folder: [(b"d", True)] if folder.count(b"/") < depth else [(b"x.png", False)])
    (found,) = pictures_below("/top")
    assert found == "/top" + "/d" * (depth - 1) + "/x.png"


def test_pictures_below__holds_the_names_of_one_folder_only(imagined: Callable[..., None]) -> None:
    """Many files in folders of 500 cost what 500 do; a flat folder costs its names."""
    count = 20_000

    def listing(folder: bytes) -> Iterator[tuple[bytes, bool]]:
        if folder == b"/deep":
            return ((b"%06d" % k, True) for k in range(count // 500))
        size = 500 if folder.startswith(b"/deep/") else count
        return ((b"picture-%09d.jpeg" % k, False) for k in range(size))

    imagined(listing)
    peaks = {}
    for folder in ("/deep", "/flat"):
        tracemalloc.start()
        assert sum(1 for _ in pictures_below(folder)) == count
        peaks[folder] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["/deep"] < 100_000
    assert peaks["/flat"] < 100 * count


def test_names__are_valid_text_on_one_line() -> None:
    name = os.fsdecode(b"caf\xe9\n\x1b[31m.png")
    assert utf8_name(name) == "caf\ufffd\n\x1b[31m.png"
    assert printable_name(name) == "caf\ufffd\\n\\x1b[31m.png"
    assert printable_name("\ud800x").encode()
    assert printable_name("plain name é.png") == "plain name é.png"
