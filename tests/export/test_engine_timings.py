"""The timing cache: which file, whole at every moment, merged with what another build wrote.

TensorRT-RTX keeps no timings, so the library's half is a stand-in here that holds words instead of timings;
the last test gives the calls to a real configuration, where they do nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.engine import timing_cache
from export.engine.options import BuildOptions
from export.engine.timing_cache import TimingCacheFile, keep_timings, timing_cache_file, use_timings
from runtime.cache import cache_folder
from runtime.errors import UsageError
from runtime.machine import CudaDevice

ROOT = Path(__file__).parent.parent.parent
ORIN = CudaDevice("Orin (nvgpu)", "sm_87")
TENSORRT: Any = SimpleNamespace(backend="tensorrt", version="10.3.0.26", has_timing_cache=True)
RTX: Any = SimpleNamespace(backend="tensorrt-rtx", version="1.7.1.116", has_timing_cache=False)


class Timings:
    """Stands in for ITimingCache."""

    def __init__(self, words: set[bytes]) -> None:
        self.words = words

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.words |= other.words
        return True

    def serialize(self) -> bytes:
        return b"timings " + b" ".join(sorted(self.words))


class Config:
    """Stands in for IBuilderConfig: refuses what does not start with ``timings``."""

    def __init__(self) -> None:
        self.cache: Timings | None = None

    def create_timing_cache(self, content: bytes) -> Timings | None:
        if content and not content.startswith(b"timings "):
            return None
        return Timings(set(content.split()[1:]))

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Timings | None:
        return self.cache


def build(file: TimingCacheFile, word: bytes) -> tuple[Any, bytes]:
    """Begins a build that times one more kernel."""
    config: Any = Config()
    read = use_timings(config, file)
    config.cache.words.add(word)
    return config, read


def test_timing_cache_file__is_one_for_each_gpu_and_version() -> None:
    file = timing_cache_file(TENSORRT, ORIN, BuildOptions())
    assert file is not None
    assert file.path == cache_folder() / "timings" / "orin-nvgpu_sm87_trt10.3.0.26.timings"
    assert timing_cache_file(TENSORRT, ORIN, BuildOptions(use_timing_cache=False)) is None
    assert timing_cache_file(RTX, None, BuildOptions()) is None


def test_timing_cache_file__refuses_what_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt-rtx keeps no timings"):
        timing_cache_file(RTX, None, BuildOptions(timing_cache=tmp_path / "t"))
    for bad in (tmp_path / "absent" / "t", tmp_path):
        with pytest.raises(UsageError, match="expected a file name in a folder that can be written"):
            timing_cache_file(TENSORRT, ORIN, BuildOptions(timing_cache=bad))
    with pytest.raises(UsageError, match="give one of the two"):
        BuildOptions(timing_cache=tmp_path / "t", use_timing_cache=False)


def test_keep_timings__two_builds_at_once_lose_nothing(tmp_path: Path) -> None:
    file = TimingCacheFile(tmp_path / "new" / "t", is_named=False)
    first, second = build(file, b"one"), build(file, b"two")
    assert keep_timings(first[0], file, first[1])
    assert keep_timings(second[0], file, second[1])
    assert file.path.read_bytes() == b"timings one two"
    assert use_timings(Config(), file) == b"timings one two"  # type: ignore[arg-type]


def test_keep_timings__a_writer_that_hangs_holds_nobody_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing_cache, "_PATIENCE_SECONDS", 0.1)
    file = TimingCacheFile(tmp_path / "t", is_named=True)
    config, read = build(file, b"one")
    descriptor = os.open(tmp_path / ".t.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert keep_timings(config, file, read)
    os.close(descriptor)
    assert file.path.read_bytes() == b"timings one"


def test_keep_timings__waits_for_a_writer(tmp_path: Path) -> None:
    file = TimingCacheFile(tmp_path / "t", is_named=True)
    config, read = build(file, b"one")
    script = (
        "import fcntl, sys, time; lock = open(sys.argv[1] + '/.t.lock', 'w'); fcntl.flock(lock, 2); "
        "print(flush=True); time.sleep(0.5); open(sys.argv[1] + '/t', 'w').write('timings two')"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert keep_timings(config, file, read)
    assert file.path.read_bytes() == b"timings one two"


def test_use_timings__a_file_of_something_else_is_refused_or_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"of another GPU")
    config: Any = Config()
    with pytest.raises(UsageError, match=r"^t: found no timings of this TensorRT and GPU"):
        use_timings(config, TimingCacheFile(path, is_named=True))
    logging.getLogger("dgsnet").propagate = True
    ours = TimingCacheFile(path, is_named=False)
    config, read = build(ours, b"one")
    assert read == b""
    assert "begun anew" in caplog.text
    assert keep_timings(config, ours, read)
    assert path.read_bytes() == b"timings one"


def test_keep_timings__a_full_disk_costs_the_timings_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("dgsnet").propagate = True
    file = TimingCacheFile(tmp_path / "t", is_named=True)
    file.path.write_bytes(b"timings old")
    config, read = build(file, b"one")

    def full(_path: Path, _content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timing_cache, "write_atomically", full)
    assert not keep_timings(config, file, read)
    assert "kernel timings not kept (No space left on device)" in caplog.text
    assert file.path.read_bytes() == b"timings old"


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_timings__the_calls_are_the_real_library_s(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    from export.engine.trt_module import load_trt
    from runtime.backends.tensorrt.log import make_log

    trt = load_trt("tensorrt-rtx")
    config = trt.api.Builder(make_log(trt.api)).create_builder_config()
    file = TimingCacheFile(tmp_path / "t", is_named=True)
    assert use_timings(config, file) == b""
    assert keep_timings(config, file, b"")
    assert file.path.stat().st_size > 0
