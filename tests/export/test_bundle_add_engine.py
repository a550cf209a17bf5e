"""Adding engines to a bundle in its place: one commit point, and crashes on either side of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.bundle import add_engine as module
from export.bundle.golden import synthetic_mosaics, write_golden
from export.bundle.lock import bundle_lock
from export.bundle.recovery import recover
from export.bundle.writer import BundleWriter
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import graph_json, parse_manifest
from runtime.bundle.opening import open_bundle
from runtime.errors import ManifestError, UsageError
from runtime.spec import CLASSES, Preprocessing

ROOT = Path(__file__).parents[2]
NAME = "engines/tiny_fp16_b1-8-32_sm86_rtx1.7.1.116.engine"
ENTRY = EngineEntry(
    NAME, "tensorrt-rtx", "fp16", ((1, 8, 32),), ("sm_86",), "1.7.1.116", None, None, "not-run"
)
MOMENTS = {
    "staging": "module.manifest_bytes = die",
    "before the engine is in place": "module.os.rename = die",
    "before the commit": "module.os.replace = lambda a, b: real(a, b) if staged(b) else die()",
    "after the commit": "module.os.replace = lambda a, b: (real(a, b), staged(b) or die())",
}


def add_engine(bundle: Path, engine_file: Path, entry: EngineEntry) -> EngineEntry:
    """Adds an engine that was built from the bundle as it is."""
    path = bundle / "manifest.json"
    files = parse_manifest(path.read_bytes()).files if path.exists() else {}
    return module.add_engine(bundle, engine_file, entry, built_from=files)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with BundleWriter(tmp_path / "demo") as writer:
        writer.path("model.onnx").write_bytes(b"model")
        zeros = np.zeros((2, 8), np.float32)
        write_golden(writer.path("golden.npz"), synthetic_mosaics(2), zeros[:, 0].copy(), zeros)
        return writer.commit(
            {
                "schema": 1,
                "graph": graph_json(8, 18),
                "preprocessing": Preprocessing().to_json(),
                "backbone": {"name": "tiny"},
                "classes": list(CLASSES),
                "decision": {"threshold": 0.5, "temperature": 1.0, "uncertain": [0.5, 0.5]},
                "tolerances": {"fp32_max_abs_logit": 1e-3},
                "golden": {"file": "golden.npz", "reference": "onnx-fp32"},
                "provenance": {"command": "test"},
                "engines": [],
            }
        )


def engine(folder: Path, content: bytes = b"engine one") -> Path:
    path = folder / "built.engine"
    path.write_bytes(content)
    return path


def engines(bundle: Path) -> dict[str, bytes]:
    """Opens a bundle as the runtime does, every hash checked, and returns its engines by name."""
    with open_bundle(bundle, verify="full", cache_dir=bundle.parent / "cache") as opened:
        opened.join()
        return {entry.file: opened.file(entry.file).read_bytes() for entry in opened.manifest.engines}


def crash(bundle: Path, built: Path, moment: str) -> None:
    """Adds an engine in a process that dies at a moment."""
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        from export.bundle import add_engine as module
        from runtime.bundle.engine_entry import EngineEntry
        from runtime.bundle.manifest import parse_manifest
        real = os.replace
        staged = lambda target: '.dgsnet-tmp-' in str(target)
        die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        {MOMENTS[moment]}
        bundle = Path(sys.argv[1])
        files = parse_manifest((bundle / 'manifest.json').read_bytes()).files
        module.add_engine(bundle, Path(sys.argv[2]), {ENTRY!r}, built_from=files)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle), str(built)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


def test_add_engine__is_listed_hashed_and_readable(bundle: Path, tmp_path: Path) -> None:
    before = parse_manifest((bundle / "manifest.json").read_bytes())
    assert add_engine(bundle, engine(tmp_path), ENTRY) == ENTRY
    assert engines(bundle) == {NAME: b"engine one"}
    after = parse_manifest((bundle / "manifest.json").read_bytes())
    assert after.engines == (ENTRY,)
    assert set(after.files) == {*before.files, NAME}
    assert after.raw["provenance"] == before.raw["provenance"]
    assert after.digest != before.digest
    assert sorted(p.name for p in bundle.iterdir()) == [
        "engines",
        "golden.npz",
        "manifest.json",
        "model.onnx",
    ]
    assert (tmp_path / "built.engine").exists()
    assert str(tmp_path).encode() not in (bundle / "manifest.json").read_bytes()


def test_add_engine__two_names_stand_side_by_side(bundle: Path, tmp_path: Path) -> None:
    other = replace(ENTRY, file=NAME.replace("fp16", "fp32"), precision="fp32")
    add_engine(bundle, engine(tmp_path), ENTRY)
    add_engine(bundle, engine(tmp_path, b"engine two"), other)
    assert engines(bundle) == {NAME: b"engine one", other.file: b"engine two"}


def test_add_engine__the_same_name_is_replaced_under_a_new_one(bundle: Path, tmp_path: Path) -> None:
    found = []
    for number in (1, 2, 3):
        found.append(add_engine(bundle, engine(tmp_path, b"engine %d" % number), ENTRY).file)
        assert engines(bundle) == {found[-1]: b"engine %d" % number}
        assert [p.name for p in (bundle / "engines").iterdir()] == [Path(found[-1]).name]
    stem = NAME.removesuffix(".engine")
    assert found == [NAME, f"{stem}-r2.engine", f"{stem}-r3.engine"]


def test_add_engine__keeps_reports_beside_its_staging(bundle: Path, tmp_path: Path) -> None:
    (bundle / "parity").mkdir()
    (bundle / "parity" / "parity.json").write_text("{}")
    add_engine(bundle, engine(tmp_path), ENTRY)
    assert [p.name for p in (bundle / "parity").iterdir()] == ["parity.json"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_add_engine__killed_at_any_moment_leaves_a_bundle_that_opens(
    moment: str, bundle: Path, tmp_path: Path
) -> None:
    add_engine(bundle, engine(tmp_path), ENTRY)
    crash(bundle, engine(tmp_path, b"engine two"), moment)
    assert list(engines(bundle).values()) == [
        b"engine two" if moment == "after the commit" else b"engine one"
    ]
    # What no journal names is still foreign.
    (bundle / "engines" / "foreign.engine").write_bytes(b"x")
    with pytest.raises(ManifestError, match="foreign"):
        engines(bundle)


@pytest.mark.parametrize("moment", ["staging", "before the engine is in place"])
def test_add_engine__killed_early_is_invisible_to_readers(moment: str, bundle: Path, tmp_path: Path) -> None:
    crash(bundle, engine(tmp_path), moment)
    assert list((bundle / "parity").glob(".dgsnet-tmp-*"))
    assert engines(bundle) == {}
    assert recover(bundle) == []
    assert not (bundle / "parity").exists()


def test_add_engine__killed_before_the_commit_is_undone(bundle: Path, tmp_path: Path) -> None:
    crash(bundle, engine(tmp_path), "before the commit")
    assert (bundle / NAME).exists()
    assert recover(bundle) == [NAME]
    assert engines(bundle) == {}
    assert not (bundle / "parity").exists()


def test_add_engine__killed_after_the_commit_is_completed(bundle: Path, tmp_path: Path) -> None:
    add_engine(bundle, engine(tmp_path), ENTRY)
    crash(bundle, engine(tmp_path, b"engine two"), "after the commit")
    second = NAME.replace(".engine", "-r2.engine")
    assert recover(bundle) == [NAME]
    assert engines(bundle) == {second: b"engine two"}
    assert recover(bundle) == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_add_engine__repairs_a_crash_before_it_adds(moment: str, bundle: Path, tmp_path: Path) -> None:
    add_engine(bundle, engine(tmp_path), ENTRY)
    crash(bundle, engine(tmp_path, b"engine two"), moment)
    last = add_engine(bundle, engine(tmp_path, b"engine three"), ENTRY)
    assert engines(bundle) == {last.file: b"engine three"}
    assert len(list((bundle / "engines").iterdir())) == 1
    assert not (bundle / "parity").exists()


def test_add_engine__an_error_leaves_the_bundle_as_it_was(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise OSError(28, "disk full")

    add_engine(bundle, engine(tmp_path), ENTRY)
    before = (bundle / "manifest.json").read_bytes()
    monkeypatch.setattr(module, "write_atomically", fail)
    with pytest.raises(UsageError, match=r"demo: cannot be written \(disk full\)"):
        add_engine(bundle, engine(tmp_path, b"engine two"), ENTRY)
    assert (bundle / "manifest.json").read_bytes() == before
    assert engines(bundle) == {NAME: b"engine one"}
    assert not (bundle / "parity").exists()


def test_recover__removes_engines_of_the_journal_only(bundle: Path, tmp_path: Path) -> None:
    add_engine(bundle, engine(tmp_path), ENTRY)
    (tmp_path / "outside.engine").write_text("someone else's")
    (bundle / "engines" / "guest.engine").write_text("in no journal")
    (bundle / "notes.txt").write_text("no engine")
    staging = bundle / "parity" / ".dgsnet-tmp-00000000"
    staging.mkdir(parents=True)
    hostile = ["../outside.engine", "engines/../../outside.engine", str(tmp_path / "outside.engine")]
    for names in ([NAME, "model.onnx", "notes.txt"], *([name] for name in hostile)):
        staging.mkdir(exist_ok=True, parents=True)
        (staging / "journal.json").write_text(json.dumps({"added": names, "replaced": []}))
        assert recover(bundle) == []
    assert (tmp_path / "outside.engine").exists()
    assert (bundle / "engines" / "guest.engine").exists()
    (bundle / "engines" / "guest.engine").unlink()
    (bundle / "notes.txt").unlink()
    assert engines(bundle) == {NAME: b"engine one"}


def test_recover__follows_no_links(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("kept")
    (bundle / "parity").mkdir()
    os.symlink(tmp_path / "elsewhere", bundle / "parity" / ".dgsnet-tmp-00000000")
    recover(bundle)
    assert (tmp_path / "elsewhere" / "file").exists()


def test_add_engine__needs_an_engine_a_place_and_a_bundle(bundle: Path, tmp_path: Path) -> None:
    for file in ("model.engine", "engines/a/b.engine", "engines/a.plan", "parity/a.engine"):
        with pytest.raises(UsageError, match=r"expected engines/<name>\.engine"):
            add_engine(bundle, engine(tmp_path), replace(ENTRY, file=file))
    with pytest.raises(ManifestError, match="leaves the bundle"):
        add_engine(bundle, engine(tmp_path), replace(ENTRY, file="engines/../../a.engine"))
    with pytest.raises(UsageError, match="found no engine there"):
        add_engine(bundle, tmp_path / "absent.engine", ENTRY)
    with pytest.raises(UsageError, match="or an empty one"):
        add_engine(bundle, engine(tmp_path, b""), ENTRY)
    with pytest.raises(ManifestError, match=r"found no manifest\.json"):
        add_engine(tmp_path, engine(tmp_path), ENTRY)
    with pytest.raises(ManifestError, match="profiles"):
        add_engine(bundle, engine(tmp_path), replace(ENTRY, profiles=((9, 8, 7),)))
    assert engines(bundle) == {}
    assert not (bundle / "parity").exists()


def test_add_engine__waits_for_no_other_writer(bundle: Path, tmp_path: Path) -> None:
    with bundle_lock(bundle), pytest.raises(UsageError, match=f"process {os.getpid()} is writing"):
        add_engine(bundle, engine(tmp_path), ENTRY)
    add_engine(bundle, engine(tmp_path), ENTRY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["built.engine", "demo"]


def test_add_engine__refuses_an_engine_of_another_graph(bundle: Path, tmp_path: Path) -> None:
    """A build takes minutes, and the bundle may be replaced meanwhile."""
    before = parse_manifest((bundle / "manifest.json").read_bytes()).files
    edited = dict(before, **{"model.onnx": replace(before["model.onnx"], sha256="0" * 64)})
    with pytest.raises(UsageError, match=r"model\.onnx is not the one that the engine was built from"):
        module.add_engine(bundle, engine(tmp_path), ENTRY, built_from=edited)
    assert engines(bundle) == {}
