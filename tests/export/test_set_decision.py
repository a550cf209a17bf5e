"""Another decision on a bundle: what changes, what stays, who remembers, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export.build import BundleOptions, build_bundle
from export.bundle import set_decision as module
from export.bundle.lock import bundle_lock
from export.bundle.recovery import recover
from export.cli import cli
from export.engine.options import BuildOptions
from export.parity.gate import AGREEMENT, bundle_gate
from runtime.bundle.golden import read_golden
from runtime.bundle.manifest import Manifest, parse_manifest
from runtime.bundle.opening import open_bundle
from runtime.decision import Decision
from runtime.errors import CheckpointError, DgsNetError, ManifestError, SpecError, UsageError
from tests.export.editing import edit_manifest
from train.record import read_record, write_record

ROOT = Path(__file__).parents[2]
FITTED = Decision(0.75, 2.0, (0.25, 0.5))


def command(*words: object) -> Result:
    done = CliRunner().invoke(cli, ["set-decision", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, (SystemExit, DgsNetError)), done.exception
    return done


def manifest(bundle: Path) -> Manifest:
    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        return opened.manifest


@pytest.fixture
def calibrated(run_folder: Path, tmp_path: Path) -> Path:
    """The shared run as calibrate leaves it: another record, the same weights."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(run_folder / "checkpoint.safetensors", run)
    write_record(run, read_record(run_folder) | {"decision": FITTED.to_json(), "calibration": {"fpr": 0.05}})
    return run


def test_set_decision__replaces_the_manifest_and_nothing_else(bundle: Path) -> None:
    before = manifest(bundle)
    files = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in bundle.rglob("*") if p.is_file()}
    done = command(bundle, "--threshold", "0.9", "--uncertain", "0.4,0.95", "--json")
    assert done.exit_code == 0, done.output
    after = manifest(bundle)
    assert after.decision == Decision(0.9, 1.0, (0.4, 0.95))
    now = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in bundle.rglob("*") if p.is_file()}
    assert {path.name for path in files if files[path] != now.pop(path)} == {"manifest.json"}
    assert now == {}
    kept = set(before.raw) - {"decision", "provenance", "digest"}
    assert {key: after.raw[key] for key in kept} == {key: before.raw[key] for key in kept}
    record = after.raw["provenance"].pop("decision_set")
    assert after.raw["provenance"] == before.raw["provenance"]
    assert record == {
        "decision": after.decision.to_json(),
        "command": ["set-decision", "--threshold", "0.9", "--uncertain", "0.4,0.95"],
        "source_sha256": None,
        "built": before.decision.to_json(),
    }
    assert json.loads(done.stdout)["digest"] == after.digest != before.digest


def test_set_decision__says_how_the_golden_verdicts_change_as_the_runtime_then_gives_them(
    bundle: Path,
) -> None:
    golden = read_golden(bundle / "golden.npz", manifest(bundle).embed_dim)
    middle = sorted(golden.logit.tolist())[8]  # half of the mosaics lie below it
    threshold = next(p / 1000 for p in range(1, 1000) if Decision(p / 1000).boundary_logit > middle)
    done = command(bundle, "--threshold", threshold, "--json")
    facts = json.loads(done.stdout)
    labels = [manifest(bundle).decision.judge(logit).label for logit in golden.logit.tolist()]
    old = [Decision().judge(logit).label for logit in golden.logit.tolist()]
    assert 0 < labels.count("generated") < 16
    assert facts["golden"]["after"] == {
        "real": labels.count("real"), "generated": labels.count("generated"), "uncertain": 0,
    }  # fmt: skip
    assert facts["golden"]["before"]["generated"] == old.count("generated")
    changed = [k for k in range(16) if labels[k] != old[k]]
    assert facts["golden"]["changed"] == changed != []
    shown = command(bundle, "--threshold", "0.5").stdout
    assert f"threshold    {threshold:.6g} -> 0.5\n" in shown
    assert f"another verdict on {len(changed)} of 16 mosaics" in shown


def test_set_decision__from_a_run_takes_all_of_it_without_torch(bundle: Path, calibrated: Path) -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\nsys.modules['safetensors'] = None\n"
        "from export.__main__ import main\nmain()"
    )
    words = ["set-decision", str(bundle), "--from", str(calibrated)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "parity" in done.stderr
    assert "of the decision before" in done.stderr
    after = manifest(bundle)
    assert after.decision == FITTED
    provenance = after.raw["provenance"]
    assert provenance["calibrated"] is True
    assert provenance["decision_set"]["source_sha256"] == provenance["source_sha256"]
    assert str(calibrated) not in (bundle / "manifest.json").read_text()
    # Whoever moves the threshold by hand has no fitted one any more; the band alone is no part of the fit.
    command(bundle, "--uncertain", "0.5,0.5")
    assert manifest(bundle).raw["provenance"]["calibrated"] is True
    command(bundle, "--threshold", "0.6")
    assert manifest(bundle).raw["provenance"]["calibrated"] is False
    assert manifest(bundle).raw["provenance"]["decision_set"]["built"] == Decision().to_json()


def test_set_decision__says_that_a_run_was_never_calibrated(
    bundle: Path, run_folder: Path, calibrated: Path
) -> None:
    assert "calibrated" not in command(bundle, "--from", calibrated).stderr
    assert "was never calibrated" in command(bundle, "--from", run_folder).stderr
    assert manifest(bundle).raw["provenance"]["calibrated"] is False


def test_set_decision__refuses_a_run_of_other_weights(bundle: Path, calibrated: Path) -> None:
    record = read_record(calibrated)
    write_record(calibrated, record | {"weights_sha256": "0" * 64})
    before = (bundle / "manifest.json").read_bytes()
    done = command(bundle, "--from", calibrated)
    assert isinstance(done.exception, UsageError)
    assert "found weights 000000000000..., the bundle was built from" in str(done.exception)
    assert (bundle / "manifest.json").read_bytes() == before
    edit_manifest(bundle, lambda content: content["golden"].update(reference="onnx-fp32"))
    done = command(bundle, "--from", calibrated)
    assert done.exit_code == 0
    assert "is not known" in done.stderr


def test_set_decision__of_what_is_so_already_writes_nothing(bundle: Path) -> None:
    before = (bundle / "manifest.json").stat().st_ino
    done = command(bundle, "--threshold", "0.5", "--temperature", "1")
    assert "already so, nothing was written" in done.stdout
    assert (bundle / "manifest.json").stat().st_ino == before


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ((), UsageError, "found nothing to set"),
        (("--threshold", "1"), SpecError, "decision.threshold: found 1.0"),
        (("--threshold", "nan"), SpecError, "decision.threshold: found nan"),
        (("--temperature", "0"), SpecError, "decision.temperature: found 0.0"),
        (("--uncertain", "0.9,0.1"), SpecError, "decision.uncertain"),
        (("--uncertain", "0.9"), UsageError, "expected LO,HI"),
        (("--from", "nowhere"), CheckpointError, "nowhere: found nothing there"),
    ],
)
def test_set_decision__refuses_in_one_line_and_changes_nothing(
    bundle: Path, words: tuple[str, ...], kind: type[DgsNetError], message: str
) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle.rglob("*")}
    done = command(bundle, *words)
    assert type(done.exception) is kind
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert {p: p.stat().st_mtime_ns for p in bundle.rglob("*")} == before


def test_set_decision__refuses_a_damaged_bundle_and_a_busy_one(bundle: Path) -> None:
    with bundle_lock(bundle):
        done = command(bundle, "--threshold", "0.9")
    assert "is writing this bundle now" in str(done.exception)
    golden = bytearray((bundle / "golden.npz").read_bytes())
    golden[len(golden) // 2] ^= 1
    (bundle / "golden.npz").write_bytes(golden)
    done = command(bundle, "--threshold", "0.9")
    assert isinstance(done.exception, ManifestError)
    assert manifest_as_it_is(bundle).decision == Decision()


def manifest_as_it_is(bundle: Path) -> Manifest:
    return parse_manifest((bundle / "manifest.json").read_bytes())


def test_set_decision__on_a_bundle_that_was_changed_meanwhile_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="was changed meanwhile"):
        module.set_decision(bundle, FITTED, digest="0" * 64, command=("x",), calibrated=False)
    assert manifest(bundle).decision == Decision()


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("module.manifest_bytes = die", Decision()),
        ("os.replace = lambda a, b: real(a, b) if '.dgsnet-tmp-' in str(b) else die()", Decision()),
        ("os.replace = lambda a, b: (real(a, b), '.dgsnet-tmp-' in str(b) or die())", FITTED),
    ],
    ids=["staging", "before the commit", "after the commit"],
)
def test_set_decision__killed_at_any_moment_leaves_a_bundle_that_opens(
    bundle: Path, moment: str, expected: Decision
) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom export.bundle import set_decision as module\n"
        "from runtime.decision import Decision\nreal = os.replace\n"
        "die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{moment}\nmodule.set_decision(Path(sys.argv[1]), {FITTED!r}, digest=sys.argv[2], command=('x',), "
        "calibrated=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, bundle, manifest(bundle).digest], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert list((bundle / "parity").glob(".dgsnet-tmp-*"))
    assert manifest(bundle).decision == expected
    assert recover(bundle) == []
    assert not list((bundle / "parity").glob(".dgsnet-tmp-*"))


def test_set_decision__on_a_full_disk_leaves_the_bundle_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_words: object) -> None:
        raise OSError(28, "disk full")

    before = {p: p.stat().st_ino for p in bundle.rglob("*")}
    monkeypatch.setattr(module, "write_atomically", fail)
    done = command(bundle, "--threshold", "0.9")
    assert isinstance(done.exception, UsageError)
    assert "bundle: cannot be written (disk full)" in str(done.exception)
    assert {p: p.stat().st_ino for p in bundle.rglob("*")} == before


def agreement(bundle: Path, checkpoint: Any) -> Any:
    report = bundle_gate(bundle, checkpoint, None)
    return next(check for check in report.checks if check.name == AGREEMENT)


def test_parity__takes_a_decision_that_was_set_as_a_note_and_any_other_as_a_failure(
    bundle: Path, checkpoint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    command(bundle, "--threshold", "0.9")
    with caplog.at_level("WARNING", logger="dgsnet"):
        found = agreement(bundle, checkpoint)
    assert found.status == "passed"
    assert "was set on the bundle by set-decision --threshold 0.9" in found.text
    assert "set-decision --threshold 0.9" in caplog.text
    edit_manifest(bundle, lambda content: content["decision"].update(threshold=0.2))
    found = agreement(bundle, checkpoint)
    assert found.status == "failed"
    assert "'threshold': 0.2" in found.text


@pytest.mark.parametrize("record", [5, {}, {"decision": 5, "command": []}, {"command": ["x"]}, None])
def test_decision_set_by__does_not_believe_a_record_that_is_none(bundle: Path, record: object) -> None:
    edit_manifest(bundle, lambda content: content["provenance"].update(decision_set=record))
    assert module.decision_set_by(manifest(bundle)) is None
    command(bundle, "--threshold", "0.75")
    assert module.decision_set_by(manifest(bundle)) == "set-decision --threshold 0.75"


def test_inspect__shows_that_the_decision_was_set(bundle: Path) -> None:
    assert "set on the bundle" not in CliRunner().invoke(cli, ["inspect", str(bundle)]).stdout
    command(bundle, "--threshold", "0.9")
    assert "set on the bundle by set-decision --threshold 0.9" in (
        CliRunner().invoke(cli, ["inspect", str(bundle)]).stdout
    )


def test_build_bundle__says_how_its_kind_of_source_gets_a_decision(
    fp32_onnx: Path, run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = BundleOptions(engine=BuildOptions(profiles=((1, 1, 1),)))
    for source, advice in (
        (fp32_onnx, f"(python -m export set-decision {tmp_path / 'b'} --threshold P sets it)"),
        (run_folder, f"set-decision {tmp_path / 'b'} --from {run_folder} puts them in)"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", logger="dgsnet"):
            build_bundle(source, tmp_path / "b", options)
        (line,) = [r.message for r in caplog.records if r.message.startswith("decision: ")]
        assert line.endswith(advice)
        assert ("train calibrate" in line) == (source == run_folder)
