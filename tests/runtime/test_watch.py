"""A watched folder and a camera: endless sources of the same stream."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.errors import ImageError, MissingDependencyError
from runtime.pictures.camera import frames
from runtime.pictures.watch import arriving_pictures, pictures_now

ROOT = Path(runtime.__file__).parent.parent


class Looks:
    """Stands for the time between looks: each sleep runs the next step of a story."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps: Iterator[Callable[[], object]] = iter(steps)

    def __call__(self, _seconds: float) -> None:
        step = next(self._steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()


def arrived(folder: Path, *steps: Callable[[], object]) -> list[str]:
    found: list[str] = []
    arriving = arriving_pictures(str(folder), pictures_now(str(folder)), sleep=Looks(*steps))
    with contextlib.suppress(KeyboardInterrupt):
        for path in arriving:
            found.append(os.path.relpath(path, folder))
    return found


def nothing() -> None:
    pass


def test_watch__passes_a_file_on_once_it_stopped_growing(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"x")
    new = tmp_path / "new.png"

    def grow() -> None:
        with open(new, "ab") as stream:
            stream.write(b"more")

    found = arrived(tmp_path, grow, grow, grow, nothing, nothing, nothing)
    assert found == ["new.png"]
    assert arrived(tmp_path, grow, grow) == []
    assert arrived(tmp_path, grow, nothing) == ["new.png"]


def test_watch__sees_changes_new_folders_and_files_that_come_back(tmp_path: Path) -> None:
    old = tmp_path / "old.png"
    old.write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")

    def change() -> None:
        old.write_bytes(b"longer")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "deep.jpg").write_bytes(b"x")
        (tmp_path / "empty.jpg").write_bytes(b"")

    assert arrived(tmp_path, change, nothing, old.unlink, lambda: old.write_bytes(b"longer"), nothing) == [
        "a/deep.jpg", "old.png", "old.png",
    ]  # fmt: skip


def test_watch__a_file_that_comes_back_is_news(tmp_path: Path) -> None:
    old, away = tmp_path / "old.png", tmp_path / "away"
    old.write_bytes(b"x")

    def leave() -> None:
        old.rename(away)

    def come_back() -> None:
        away.rename(old)

    assert arrived(tmp_path, leave, come_back, nothing) == ["old.png"]


def test_watch__ends_when_the_folder_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="went away"):
        list(arriving_pictures(str(folder), {}, sleep=Looks(folder.rmdir)))


@contextlib.contextmanager
def predicting(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "predict", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_predict__watches_until_ctrl_c(bundle: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    lines: list[str] = []
    with predicting(bundle, "--watch", folder) as process:
        threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True).start()
        for name in ("first.png", "second.png"):
            deadline = time.monotonic() + 30
            while not any(name in line for line in lines) and time.monotonic() < deadline:
                # Again and again: what lies there before the first look is not news.
                shutil.copy(pictures[0], folder / name)
                for _ in range(60):
                    if not any(name in line for line in lines):
                        time.sleep(0.05)
            assert any(name in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        errors = process.stderr.read() if process.stderr else ""
    assert " judged: " in errors
    assert "Traceback" not in errors


def test_predict__ctrl_c_while_names_are_awaited_ends_at_once(bundle: Path, pictures: list[Path]) -> None:
    with predicting(bundle, "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{pictures[0]}\n")
        process.stdin.flush()
        assert "picture" in process.stdout.readline()
        # The verdict comes although the batch is not full and the stream has not ended.
        assert process.stdout.readline().strip().endswith(str(pictures[0]))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        errors = process.stderr.read() if process.stderr else ""
    assert errors.endswith("stopped\n")
    assert "Fatal" not in errors


class FakeCapture:
    """A camera of five frames: a stand-in for OpenCV, which is not installed here."""

    released = 0

    def __init__(self, source: int | str) -> None:
        self._source = source
        self._number = -1

    def isOpened(self) -> bool:
        return self._source in (0, "film.mp4")

    def grab(self) -> bool:
        self._number += 1
        return self._number < 5

    def retrieve(self) -> tuple[bool, Any]:
        return True, np.full((4, 6, 3), [self._number, 100, 200], np.uint8)

    def release(self) -> None:
        FakeCapture.released += 1


def test_frames__come_as_rgb_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=FakeCapture))
    found = list(frames("0", every=2))
    assert [name for name, _ in found] == ["0#0", "0#2", "0#4"]
    assert found[1][1][0, 0].tolist() == [200, 100, 2]
    assert len(list(frames("film.mp4"))) == 5
    before = FakeCapture.released
    with pytest.raises(ImageError, match="no camera or video that opens"):
        list(frames("7"))
    assert FakeCapture.released == before + 1


def test_predict__camera_without_opencv_is_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "predict", "-q", bundle, "--camera", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "--camera needs OpenCV" in done.stderr


def test_frames__say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match="OpenCV"):
        next(frames("0"))
