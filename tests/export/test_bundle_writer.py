"""Bundles on disk: whole or not at all, also when the writer is killed; read back by the runtime itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import writer as writer_module
from export.bundle.golden import synthetic_mosaics, write_golden
from export.bundle.writer import BundleWriter
from runtime.bundle.manifest import graph_json
from runtime.bundle.opening import open_bundle
from runtime.errors import ManifestError, UsageError
from runtime.spec import CLASSES, Preprocessing

ROOT = Path(__file__).parents[2]


def content(**changes: Any) -> dict[str, Any]:
    """Returns a manifest without files and digest."""
    return {
        "schema": 1,
        "graph": graph_json(8, 18),
        "preprocessing": Preprocessing().to_json(),
        "backbone": {"name": "tiny"},
        "classes": list(CLASSES),
        "decision": {"threshold": 0.5, "temperature": 1.0, "uncertain": [0.5, 0.5]},
        "tolerances": {"fp32_max_abs_logit": 1e-3},
        "golden": {"file": "golden.npz", "reference": "onnx-fp32"},
        "provenance": {},
        "engines": [],
        **changes,
    }


def fill(writer: BundleWriter, model: bytes) -> None:
    writer.path("model.onnx").write_bytes(model)
    images = synthetic_mosaics(2)
    write_golden(writer.path("golden.npz"), images, np.zeros(2, np.float32), np.zeros((2, 8), np.float32))
    writer.path("parity/parity.json").write_bytes(b"{}")


def write(destination: Path, model: bytes = b"first model") -> Path:
    with BundleWriter(destination) as writer:
        fill(writer, model)
        return writer.commit(content())


def write_then(destination: Path, action: Callable[[BundleWriter], object]) -> None:
    """Fills a second bundle and does ``action`` before leaving the writer."""
    with BundleWriter(destination) as writer:
        fill(writer, b"second model")
        action(writer)


def read(destination: Path) -> bytes:
    """Opens a bundle as the runtime does, every hash checked, and returns its model."""
    with open_bundle(destination, verify="full", cache_dir=destination.parent / "cache") as bundle:
        bundle.join()
        return bundle.file("model.onnx").read_bytes()


def siblings(destination: Path) -> list[str]:
    return sorted(p.name for p in destination.parent.iterdir() if p.name not in (destination.name, "cache"))


def run_writer(destination: Path, before_commit: str, *, wait: bool = False) -> subprocess.Popen[str]:
    """Starts another process that replaces a bundle; ``before_commit`` runs in it."""
    script = textwrap.dedent(
        """
        import importlib.util, os, signal, sys, time
        from pathlib import Path
        from export.bundle import writer as module
        spec = importlib.util.spec_from_file_location("bundle_tests", sys.argv[1])
        tests = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tests)
        die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        with module.BundleWriter(Path(sys.argv[2])) as writer:
            tests.fill(writer, b"second model")
            {before_commit}
            writer.commit(tests.content())
        """
    ).format(before_commit=before_commit)
    process = subprocess.Popen(
        [sys.executable, "-c", script, __file__, str(destination)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if not wait:
        process.communicate(timeout=60)
    return process


def test_writer__writes_a_bundle_that_the_runtime_opens(tmp_path: Path) -> None:
    made = write(tmp_path / "demo")
    assert made == tmp_path / "demo"
    assert read(made) == b"first model"
    assert siblings(made) == []
    assert sorted(p.name for p in made.iterdir()) == ["golden.npz", "manifest.json", "model.onnx", "parity"]
    for path in made.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_writer__same_content_same_manifest(tmp_path: Path) -> None:
    manifests = {(write(tmp_path / name) / "manifest.json").read_bytes() for name in ("a", "b")}
    assert len(manifests) == 1


def test_writer__replaces_a_bundle(tmp_path: Path) -> None:
    write(tmp_path / "demo")
    (tmp_path / "demo" / "parity" / "notes.txt").write_text("mine, and said to be disposable")
    write(tmp_path / "demo", b"second model")
    assert read(tmp_path / "demo") == b"second model"
    assert siblings(tmp_path / "demo") == []


def test_writer__replaces_a_bundle_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "exchange", lambda *_args: False)
    write(tmp_path / "demo")
    write(tmp_path / "demo", b"second model")
    assert read(tmp_path / "demo") == b"second model"
    assert siblings(tmp_path / "demo") == []


def test_writer__exchange_never_leaves_the_name_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "demo")
    monkeypatch.setattr(writer_module, "rename_aside", lambda *_args: pytest.fail("not one step"))
    write(tmp_path / "demo", b"second model")
    assert read(tmp_path / "demo") == b"second model"


def test_writer__an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert read(write(tmp_path / "demo")) == b"first model"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_writer__an_error_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    def fail(_writer: BundleWriter) -> None:
        raise error

    write(tmp_path / "demo")
    for name in ("demo", "new"):
        with pytest.raises(error):
            write_then(tmp_path / name, fail)
    assert read(tmp_path / "demo") == b"first model"
    assert siblings(tmp_path / "demo") == []


def test_writer__leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "demo") as writer:
        fill(writer, b"model")
    assert list(tmp_path.iterdir()) == []


def test_writer__a_manifest_that_nobody_could_open_is_not_committed(tmp_path: Path) -> None:
    write(tmp_path / "demo")
    wrong = content(decision={"threshold": 7, "temperature": 1.0, "uncertain": [0.5, 0.5]})
    with pytest.raises(ManifestError, match="threshold"):
        write_then(tmp_path / "demo", lambda writer: writer.commit(wrong))
    assert read(tmp_path / "demo") == b"first model"
    assert siblings(tmp_path / "demo") == []


def test_writer__links_are_not_committed(tmp_path: Path) -> None:
    def commit_a_link(writer: BundleWriter) -> None:
        writer.path("extra.bin").symlink_to(tmp_path)
        writer.commit(content())

    with pytest.raises(ManifestError, match=r"extra\.bin: a link"):
        write_then(tmp_path / "demo", commit_a_link)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a\\b"])
def test_writer__names_stay_inside(name: str, tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "demo") as writer:
        with pytest.raises(ManifestError, match="file name"):
            writer.path(name)
        with pytest.raises(UsageError, match="written by commit"):
            writer.path("manifest.json")


def _foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def _foreign_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"manifest_version": 3, "name": "a browser extension"}')


def _file(path: Path) -> None:
    path.write_text("a file")


def _link(path: Path) -> None:
    write(path.with_name("target"))
    path.symlink_to("target")


def _bundle_with_a_guest(path: Path) -> None:
    write(path)
    (path / "thesis.tex").write_text("years of work")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_foreign_folder, "not a readable bundle"),
        (_foreign_manifest, "not a readable bundle"),
        (_file, "found a file"),
        (_link, "found a link"),
        (_bundle_with_a_guest, r"holds thesis\.tex"),
    ],
)
def test_writer__what_is_not_ours_is_left_alone(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    def snapshot() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    make(tmp_path / "demo")
    before = snapshot()
    with pytest.raises(UsageError, match=message), BundleWriter(tmp_path / "demo"):
        pytest.fail("entered")
    assert snapshot() == before


def test_writer__looks_again_before_it_replaces(tmp_path: Path) -> None:
    def commit_over_a_newcomer(writer: BundleWriter) -> None:
        _foreign_folder(tmp_path / "demo")
        writer.commit(content())

    with pytest.raises(UsageError, match="not a readable bundle"):
        write_then(tmp_path / "demo", commit_over_a_newcomer)
    assert (tmp_path / "demo" / "thesis.tex").read_text() == "years of work"
    assert siblings(tmp_path / "demo") == []


def test_writer__needs_a_parent_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for destination in (tmp_path / "absent" / "demo", tmp_path / "file" / "demo", Path("/")):
        with pytest.raises(UsageError, match="its parent is no folder"), BundleWriter(destination):
            pytest.fail("entered")


def test_writer__a_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    process = run_writer(tmp_path / "demo", "print('ready', flush=True); time.sleep(60)", wait=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with (
            pytest.raises(UsageError, match=rf"demo: process {process.pid} is writing"),
            BundleWriter(tmp_path / "demo"),
        ):
            pytest.fail("entered")
    finally:
        process.kill()
        process.communicate()
    write(tmp_path / "demo")
    assert siblings(tmp_path / "demo") == []


@pytest.mark.parametrize(
    ("moment", "survives"),
    [
        ("die()", b"first model"),
        ("module.manifest_bytes = die", b"first model"),
        ("module.exchange = die", b"first model"),
        ("real = module.exchange; module.exchange = lambda *args: (real(*args), die())", b"second model"),
    ],
    ids=["while writing", "before the manifest", "before the exchange", "before the old one is removed"],
)
def test_writer__killed_at_any_moment_leaves_a_whole_bundle(
    moment: str, survives: bytes, tmp_path: Path
) -> None:
    write(tmp_path / "demo")
    assert run_writer(tmp_path / "demo", moment).returncode == -signal.SIGKILL
    assert read(tmp_path / "demo") == survives
    assert any(name.startswith(".demo.tmp-") for name in siblings(tmp_path / "demo"))
    write(tmp_path / "demo", b"third model")
    assert read(tmp_path / "demo") == b"third model"
    assert siblings(tmp_path / "demo") == []


def test_writer__killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    write(tmp_path / "demo")
    moment = (
        "module.exchange = lambda *args: False; "
        "module.rename_aside = lambda new, old, aside: (os.rename(old, aside), die())"
    )
    assert run_writer(tmp_path / "demo", moment).returncode == -signal.SIGKILL
    assert not (tmp_path / "demo").exists()
    with BundleWriter(tmp_path / "demo"):
        assert read(tmp_path / "demo") == b"first model"
    assert siblings(tmp_path / "demo") == []


def test_writer__removes_only_what_is_stale_and_its_own(tmp_path: Path) -> None:
    stale = tmp_path / ".demo.tmp-0123abcd"
    for name in (stale.name, ".demo.tmp-notes", ".other.tmp-0123abcd", "demo.tmp-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    os.symlink(tmp_path / ".demo.tmp-notes", tmp_path / ".demo.tmp-89abcdef")
    write(tmp_path / "demo")
    assert not stale.exists()
    assert siblings(tmp_path / "demo") == [
        ".demo.tmp-89abcdef",
        ".demo.tmp-notes",
        ".other.tmp-0123abcd",
        "demo.tmp-0123abcd",
    ]
    assert (tmp_path / ".demo.tmp-notes" / "file").exists()


def test_writer__a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path / "demo")
    monkeypatch.setattr(writer_module, "sync_folder", fail)
    with pytest.raises(UsageError, match=r"demo: cannot be written \(No space left on device\)"):
        write_then(tmp_path / "demo", lambda writer: writer.commit(content()))
    assert read(tmp_path / "demo") == b"first model"
    assert siblings(tmp_path / "demo") == []
