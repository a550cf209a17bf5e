"""A bundle is opened whole and unchanged, or refused with one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bundle import opening as bundle_module
from runtime.bundle import verification
from runtime.bundle.manifest import manifest_digest
from runtime.bundle.opening import open_bundle
from runtime.errors import ManifestError, UsageError

EMBED_DIM = 4


def open_and_join(folder: Path, **options: str) -> tuple[str, ...]:
    """Opens a bundle, waits, and returns the names that were really hashed."""
    with open_bundle(folder, **options) as bundle:
        bundle.join()
        return bundle.verification.hashed


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ManifestError, match=match) as caught:
        open_and_join(folder)
    assert "\n" not in str(caught.value)


def edit(folder: Path, change: Callable[[dict], object], *, digest: bool = True) -> None:
    """Changes manifest.json without the checks of manifest_bytes, as an attacker would."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    if digest:
        content["digest"] = manifest_digest(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once; the real wait is two seconds."""
    monkeypatch.setattr(verification, "SETTLE_NS", -1)


def test_open_bundle__gives_manifest_and_files(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        opened.join()
        assert opened.path == bundle
        assert opened.manifest.embed_dim == EMBED_DIM
        assert opened.file("model.onnx").is_file()
        with pytest.raises(ManifestError, match="does not list"):
            opened.file("other.onnx")
        with pytest.raises(ManifestError, match="leaves the bundle"):
            opened.file("../model.onnx")


def test_open_bundle__follows_a_link_to_the_folder_itself(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    assert open_and_join(tmp_path / "current")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.npz"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_open_bundle__refuses_any_flipped_byte(bundle: Path, name: str, place: str) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    at = {"first": 0, "middle": len(content) // 2, "last": len(content) - 2}[place]
    content[at] ^= 1
    path.write_bytes(content)
    refused(bundle, "changed or damaged|not valid JSON|manifest.json")


def test_open_bundle__refuses_every_single_flipped_bit_of_a_manifest_value(bundle: Path) -> None:
    path = bundle / "manifest.json"
    original = path.read_bytes()
    meaningful = [i for i, byte in enumerate(original) if byte not in b" \n"]
    for index in meaningful[:: max(1, len(meaningful) // 150)]:
        changed = bytearray(original)
        changed[index] ^= 1 << (index % 7)
        path.write_bytes(changed)
        with pytest.raises(ManifestError):
            open_bundle(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.npz"])
def test_open_bundle__refuses_missing_files(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, "missing|holds no manifest.json")


@pytest.mark.parametrize("name", ["extra.bin", "engines/x.engine", ".hidden", "weights/model.onnx.data"])
def test_open_bundle__refuses_unlisted_files(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"x")
    refused(bundle, "not listed in the manifest")


def test_open_bundle__allows_parity_reports_and_an_empty_engines_folder(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    (bundle / "parity" / "deep").mkdir(parents=True)
    (bundle / "parity" / "deep" / "report.html").write_text("anything")
    assert open_and_join(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json", "parity", "extra"])
def test_open_bundle__refuses_links(bundle: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if (bundle / name).exists():
        (bundle / name).rename(outside)
    else:
        outside.mkdir()
    (bundle / name).symlink_to(outside)
    refused(bundle, "link")


def test_open_bundle__says_how_to_copy_what_a_hub_or_a_cluster_mounts(bundle: Path, tmp_path: Path) -> None:
    """Every file a link into a folder beside it, as in a hub's snapshots; or into a hidden one inside."""
    for hidden in (tmp_path / "blobs", tmp_path / "mount" / "..2026"):
        mount = tmp_path / ("mount" if hidden.name.startswith("..") else "snapshot")
        mount.mkdir()
        shutil.copytree(bundle, hidden)
        for path in hidden.iterdir():
            (mount / path.name).symlink_to(path)
        with pytest.raises(
            ManifestError, match=r"copy .*: mkdir FOLDER && cp -rL BUNDLE/\* FOLDER/"
        ) as caught:
            open_bundle(mount)
        advice = str(caught.value).rpartition(": ")[2]
        copy = tmp_path / f"copy of {mount.name}"
        subprocess.run(
            advice.replace("BUNDLE", f"'{mount}'").replace("FOLDER", f"'{copy}'"), shell=True, check=True
        )
        assert open_and_join(copy)


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", ".DS_Store", ".nfs0001"])
def test_open_bundle__says_what_to_do_with_a_stray_file(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")
    refused(
        bundle, rf"{name} is not listed in the manifest; remove .* or put the bundle into a folder of its"
    )


def test_open_bundle__refuses_pipes(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    refused(bundle, "special file")


@pytest.mark.parametrize("change", [-1, 1])
def test_open_bundle__refuses_other_sizes_before_hashing(bundle: Path, change: int) -> None:
    path = bundle / "golden.npz"
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(ManifestError, match="bytes, the manifest says"):
        open_bundle(bundle, verify="off")


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a\\b", "a/../b", "./a", "", "C:x", "a\nb", "parity/x", "a//b"]
)
def test_open_bundle__refuses_hostile_names(bundle: Path, name: str) -> None:
    edit(bundle, lambda content: content["files"].update({name: {"sha256": "0" * 64, "size": 0}}))
    refused(bundle, "manifest")


def test_open_bundle__refuses_a_manifest_that_lists_itself(bundle: Path) -> None:
    edit(bundle, lambda c: c["files"].update({"manifest.json": {"sha256": "0" * 64, "size": 0}}))
    refused(bundle, "must not")


def test_open_bundle__refuses_newer_schemas_bad_digests_and_huge_manifests(bundle: Path) -> None:
    path = bundle / "manifest.json"
    original = path.read_text()
    edit(bundle, lambda content: content.update(schema=2))
    refused(bundle, "schema 2, this dgsnet reads up to 1; upgrade")
    path.write_text(original)
    edit(bundle, lambda content: content["decision"].update(threshold=0.9), digest=False)
    refused(bundle, "does not match its digest")
    path.write_text(original + " " * 1_000_000)
    refused(bundle, "found 1000001 bytes, expected at most 1000000")
    path.write_text("[" * 100_000)
    refused(bundle, "not valid JSON")


def test_open_bundle__names_what_is_not_a_bundle(bundle: Path, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (bundle / "model.onnx", "expected the folder"),
        (tmp_path, "holds no manifest.json"),
    ):
        with pytest.raises(ManifestError, match=message):
            open_bundle(path)
    with pytest.raises(UsageError, match="found 'maybe'"):
        open_bundle(bundle, verify="maybe")


def test_open_bundle__writes_nothing_into_it(bundle: Path, settled: None) -> None:
    before = {path: path.stat().st_mtime_ns for path in [bundle, *bundle.rglob("*")]}
    open_and_join(bundle)
    assert before == {path: path.stat().st_mtime_ns for path in [bundle, *bundle.rglob("*")]}


def test_verify__cached_hashes_new_files_once(bundle: Path, settled: None) -> None:
    assert sorted(open_and_join(bundle)) == ["golden.npz", "model.onnx"]
    assert open_and_join(bundle) == ()
    assert sorted(open_and_join(bundle, verify="full")) == ["golden.npz", "model.onnx"]
    assert open_and_join(bundle, verify="off") == ()


def test_verify__hashes_files_beside_each_other(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=10)
    check = verification.Verification._check

    def meet(self: verification.Verification, name: str, entry: object) -> None:
        both.wait()
        check(self, name, entry)

    monkeypatch.setattr(verification, "usable_cpus", lambda: 2)
    monkeypatch.setattr(verification.Verification, "_check", meet)
    assert sorted(open_and_join(bundle)) == ["golden.npz", "model.onnx"]


@pytest.mark.parametrize("cores", [1, 16])
@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_verify__refuses_the_damaged_file_with_any_number_of_threads(
    bundle: Path, name: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "usable_cpus", lambda: cores)
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    refused(bundle, f"{name}.*changed or damaged")


def test_verify__does_not_remember_files_that_changed_just_now(bundle: Path) -> None:
    assert len(open_and_join(bundle)) == 2
    assert len(open_and_join(bundle)) == 2


def test_verify__sees_a_change_behind_restored_time_stamps(bundle: Path, settled: None) -> None:
    open_and_join(bundle)
    path = bundle / "model.onnx"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    refused(bundle, "changed or damaged")


def test_verify__off_sees_no_hash(bundle: Path) -> None:
    path = bundle / "golden.npz"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    open_and_join(bundle, verify="off")
    refused(bundle, "changed or damaged")


def test_verify__does_not_remember_a_file_that_failed(bundle: Path, settled: None) -> None:
    path = bundle / "golden.npz"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        refused(bundle, "changed or damaged")


def test_verify__works_without_a_writable_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("DGSNET_CACHE", str(tmp_path / "blocked" / "cache"))
    for _ in range(2):
        assert len(open_and_join(bundle)) == 2


def test_verify__survives_rubbish_in_the_cache(bundle: Path, tmp_path: Path, settled: None) -> None:
    open_and_join(bundle)
    stamps = list((tmp_path / "cache" / "verified").iterdir())
    assert len(stamps) == 2
    for stamp in stamps:
        stamp.unlink()
        stamp.mkdir()
    assert len(open_and_join(bundle)) == 2


def test_open_bundle__looks_again_when_an_engine_is_added_meanwhile(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is replaced between reading it and listing the folder."""
    looks = []
    check = bundle_module._check_listing

    def listing(folder: Path, manifest: object) -> None:
        looks.append(1)
        if len(looks) == 1:
            edit(bundle, lambda content: content["provenance"].update(note="changed"))
            raise ManifestError("the old manifest lists a file that is gone")
        check(folder, manifest)

    monkeypatch.setattr(bundle_module, "_check_listing", listing)
    with open_bundle(bundle) as opened:
        assert opened.manifest.raw["provenance"]["note"] == "changed"
    assert len(looks) == 2


def test_open_bundle__refuses_links_among_the_reports(bundle: Path) -> None:
    (bundle / "parity").mkdir(exist_ok=True)
    (bundle / "parity" / "report.html").symlink_to("/etc/hostname")
    refused(bundle, "link or special file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["golden"].update(more=1), "golden: found keys"),
        (lambda m: m["engines"][0].update(more=1), "unknown keys: more"),
        (lambda m: m["engines"].append(m["engines"][0]), "listed twice"),
        (lambda m: m.update(backbone=None), "backbone: expected an object"),
        (lambda m: m.update(provenance=[]), "provenance: found list"),
        (lambda m: m["decision"].update(temperature=1e308), "0.001 to 1000"),
    ],
    ids=["golden", "engine", "twice", "backbone", "provenance", "temperature"],
)
def test_open_bundle__refuses_loose_manifests_and_names_the_bundle(
    bundle: Path, change: Callable[[dict], object], message: str
) -> None:
    edit(bundle, change)
    refused(bundle, f"{bundle.name}/manifest.json: .*{message}")
