"""Where caches go, and that they never get in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cache import cache_folder, read_cache_file, write_cache_file


def test_cache_folder__order_of_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.setenv("DGSNET_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DGSNET_CACHE")
    assert cache_folder() == Path("/home/someone/.cache/dgsnet")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/someone/.cache/dgsnet")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/shared")
    assert cache_folder() == Path("/var/shared/dgsnet")


def test_write_cache_file__leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "stamp"
    for content in (b"first", b"second"):
        assert write_cache_file(path, content)
        assert read_cache_file(path) == content
    assert [p.name for p in path.parent.iterdir()] == ["stamp"]


def test_write_cache_file__reports_failure_and_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not write_cache_file(tmp_path / "file" / "stamp", b"x")
    (tmp_path / "stamp").mkdir()
    assert not write_cache_file(tmp_path / "stamp", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "stamp"]


def test_read_cache_file__ignores_missing_and_overlong(tmp_path: Path) -> None:
    assert read_cache_file(tmp_path / "none") is None
    (tmp_path / "long").write_bytes(b"12345")
    assert read_cache_file(tmp_path / "long", limit=4) is None
    assert read_cache_file(tmp_path / "long", limit=5) == b"12345"
