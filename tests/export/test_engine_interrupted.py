"""Builds of real engines that end badly: Ctrl-C, kill -9, a second build, a full or read-only disk.

Each runs as a process of its own on a pseudo-terminal, where the bar says that TensorRT-RTX is at work.
"""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.bundle.opening import open_bundle

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason='tensorrt-rtx is not installed: pip install "dgsnet[tensorrt-rtx]"',
)
# A share of the build that only TensorRT's own progress can have drawn.
_AT_WORK = re.compile(rb"engine \[[#.]+\] [1-9]\d?/100")


class Build:
    """A running build-engine on a terminal of its own."""

    def __init__(self, *words: object) -> None:
        self._terminal, end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "export", "build-engine", *map(str, words)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=end, stderr=end, start_new_session=True,
        )  # fmt: skip
        os.close(end)
        self.said = b""

    def until_at_work(self) -> None:
        while not _AT_WORK.search(self.said):
            assert self._read(60), f"it ended before it was seen at work: {self.said!r}"

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        while self._read(100):
            pass
        return self.process.wait(100)

    def _read(self, seconds: float) -> bool:
        assert select.select([self._terminal], [], [], seconds)[0], f"silent: {self.said!r}"
        try:
            content = os.read(self._terminal, 65536)
        except OSError:
            return False
        self.said += content
        return bool(content)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def start() -> Iterator[Callable[..., Build]]:
    """Starts builds, and ends those that a failing test leaves."""
    builds: list[Build] = []

    def start(*words: object) -> Build:
        builds.append(Build(*words))
        return builds[-1]

    yield start
    for build in builds:
        build.close()


@pytest.fixture(scope="module")
def long_onnx(vit: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contract graph whose engine takes seconds: 10 blocks."""
    import onnx

    path = tmp_path_factory.mktemp("long") / "model.onnx"
    onnx.save(vit(blocks=10), path)
    return path


@pytest.fixture(scope="module")
def long_bundle(long_onnx: Path) -> Path:
    """A bundle of it without any engine."""
    from export.build import BundleOptions, build_bundle
    from export.engine.options import BuildOptions

    target = long_onnx.with_name("bundle")
    build_bundle(long_onnx, target, BundleOptions(engine=BuildOptions(profiles=((1, 2, 2),))))
    return target


@pytest.fixture
def bundle(long_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(long_bundle, tmp_path / "b"))


def content(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns every file below a folder with its size and inode."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_whole(bundle: Path) -> bool:
    with open_bundle(bundle, verify="full") as opened:
        opened.join()
    return True


EXTEND = ("--backend", "tensorrt-rtx", "--target", "sm_86")


def test_build_engine__ctrl_c_leaves_a_bundle_as_it_was(bundle: Path, start: Callable[..., Build]) -> None:
    before = content(bundle)
    build = start(bundle, *EXTEND)
    build.until_at_work()
    build.signal(signal.SIGINT)
    assert build.end() == 130, build.said
    assert b"stopped" in build.said.splitlines()[-1]
    assert b"Traceback" not in build.said
    assert content(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_build_engine__a_second_ctrl_c_waits_for_the_library_too(
    bundle: Path, start: Callable[..., Build]
) -> None:
    build = start(bundle, *EXTEND)
    build.until_at_work()
    # Stopped meanwhile, so that both are there before it can act on the first.
    build.signal(signal.SIGINT)
    time.sleep(0.01)
    build.signal(signal.SIGINT)
    assert build.end() == 130, build.said
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_build_engine__what_kill_9_leaves_is_hidden_and_goes_with_the_next_build(
    bundle: Path, start: Callable[..., Build]
) -> None:
    before = content(bundle)
    build = start(bundle, *EXTEND)
    build.until_at_work()
    build.signal(signal.SIGKILL)
    assert build.end() == -signal.SIGKILL
    assert content(bundle) == before
    assert is_whole(bundle)
    left = [path.name for path in bundle.parent.iterdir() if path != bundle]
    assert any(name.startswith(".b.engine-") for name in left)
    assert all(name.startswith(".") for name in left)
    again = start(bundle, *EXTEND)
    assert again.end() == 0, again.said
    assert b"left by an interrupted build" in again.said
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    assert is_whole(bundle)
    assert len(list((bundle / "engines").iterdir())) == 1


@pytest.mark.slow
def test_build_engine__kill_9_in_a_new_bundle_publishes_nothing(
    long_onnx: Path, tmp_path: Path, start: Callable[..., Build]
) -> None:
    words = (long_onnx, "-o", tmp_path / "new", *EXTEND, "--max-batch", 2, "--opt-batch", 2)
    build = start(*words)
    build.until_at_work()
    build.signal(signal.SIGKILL)
    build.end()
    assert not (tmp_path / "new").exists()
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".new.")] == []
    again = start(*words)
    assert again.end() == 0, again.said
    assert is_whole(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_build_engine__a_second_build_for_the_same_bundle_is_refused(
    bundle: Path, start: Callable[..., Build]
) -> None:
    first = start(bundle, *EXTEND)
    first.until_at_work()
    first.signal(signal.SIGSTOP)
    second = start(bundle, *EXTEND)
    assert second.end() == 2
    expected = f"process {first.process.pid} is writing this bundle now; wait until it is done"
    assert expected.encode() in second.said
    first.signal(signal.SIGCONT)
    assert first.end() == 0, first.said
    assert is_whole(bundle)


def on_own_disk(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script where ``folder`` can be mounted over and nobody else sees it."""
    tool = shutil.which("unshare")
    if tool is None or subprocess.run([tool, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare -rm does not work here: no file system can be mounted")
    return subprocess.run(
        [tool, "-rm", "sh", "-e", "-c", script, "sh", folder, sys.executable],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def builds_in(bundle: str, *flags: str) -> str:
    return f'"$2" -m export build-engine "{bundle}" {" ".join((*EXTEND, *flags))} -q'


def test_build_engine__a_full_disk_is_one_line_and_leaves_the_bundle(bundle: Path, tmp_path: Path) -> None:
    room = sum(size for size, _inode in content(bundle).values()) + 2**20
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        f'mount -t tmpfs -o size={room} tmpfs "$1"; cp -r "{bundle}" "$1/b"; cp -r "$1/b" "{tmp_path}/was"'
    )
    same = 'ls -A "$1" >&2; diff -r "$1/b" ' + f'"{tmp_path}/was"'
    done = on_own_disk(
        disk, f"{mounted}; {builds_in('$1/b', '--no-plan-check')} || code=$?; {same}; exit $code"
    )
    said, listing = done.stderr.splitlines()[:-1], done.stderr.splitlines()[-1]
    assert (done.returncode, len(said), listing) == (2, 1, "b"), done.stderr
    assert re.search(r"error: .*cannot be written \(No space left on device\); free space", said[0])
    planned = on_own_disk(disk, f"{mounted}; {builds_in('$1/b')}")
    assert planned.returncode == 2
    assert re.search(r"error: .*the build needs about \d+ MB of disk, found \d MB free", planned.stderr)


def test_build_engine__a_read_only_bundle_is_refused_before_anything_is_built(bundle: Path) -> None:
    mounted = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"'
    done = on_own_disk(bundle.parent, f"{mounted}; {builds_in('$1/b', '-v')}")
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: .* cannot be written", done.stderr.splitlines()[-1])
    assert "engine" not in done.stderr.replace("build-engine", "").replace(".engine", "").split("error:")[0]


def test_build_engine__ended_by_the_system_publishes_nothing(
    bundle: Path, start: Callable[..., Build]
) -> None:
    before = content(bundle)
    build = start(bundle, *EXTEND)
    build.until_at_work()
    build.signal(signal.SIGTERM)
    assert build.end() != 0
    assert content(bundle) == before
